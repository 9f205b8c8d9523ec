package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	authTestIssuer   = "https://issuer.test"
	authTestAudience = "taskledger"
)

var (
	authTestSecret = []byte("0123456789abcdef0123456789abcdef")
	authTestNow    = time.Date(2026, 11, 22, 19, 43, 57, 0, time.UTC)
)

// authTestClock is a clock that only moves when it is told to.
type authTestClock struct{ at time.Time }

func (c *authTestClock) now() time.Time { return c.at }

func newTestAuthenticator(t testing.TB, cfg AuthConfig) *Authenticator {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return authTestNow }
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	a, err := NewAuthenticator(t.Context(), cfg)
	if err != nil {
		t.Fatalf("NewAuthenticator: %v", err)
	}
	t.Cleanup(a.Close)
	return a
}

func authStrictConfig() AuthConfig {
	return AuthConfig{Secret: authTestSecret, Issuer: authTestIssuer, Audience: authTestAudience}
}

func authBearer(token string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

func authB64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signRaw signs header and claims exactly as they are written.
func signRaw(header, claims string) string {
	return signRawWith(sha256.New, authTestSecret, header, claims)
}

func signRawWith(h func() hash.Hash, key []byte, header, claims string) string {
	signed := authB64(header) + "." + authB64(claims)
	mac := hmac.New(h, key)
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const plainHeader = `{"alg":"HS256","typ":"JWT"}`

func withHeader(header string) string { return signRaw(header, claimsWith(nil)) }

func withClaims(changes map[string]any) string { return signRaw(plainHeader, claimsWith(changes)) }

// claimsWith returns good claims with changes; a nil value takes the member out, a json.RawMessage goes in as it is.
func claimsWith(changes map[string]any) string {
	claims := map[string]any{
		"sub": "ada", "iss": authTestIssuer, "aud": authTestAudience,
		"iat": authTestNow.Unix(), "exp": authTestNow.Add(time.Hour).Unix(),
	}
	for name, value := range changes {
		if value == nil {
			delete(claims, name)
			continue
		}
		claims[name] = value
	}
	raw, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func authRaw(text string) json.RawMessage { return json.RawMessage(text) }

func authSeconds(d time.Duration) int64 { return authTestNow.Add(d).Unix() }

// otherLastCharacter spells the same bytes differently: it sets a pad bit.
func otherLastCharacter(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func wantAuthRefused(t *testing.T, err error, code, reason string) {
	t.Helper()
	var refused *AuthError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want %s: %s", err, code, reason)
	}
	if refused.Code != code || refused.Reason != reason {
		t.Fatalf("got %s: %s, want %s: %s", refused.Code, refused.Reason, code, reason)
	}
}

// hostileToken is refused, and for this reason.
type hostileToken struct{ name, token, reason string }

// Reasons that more than one token is refused for.
const (
	whyBase64url   = "a part is not base64url"
	whyBadHeader   = "header is not a strict JSON object"
	whyBadClaims   = "claims are not a strict JSON object"
	whyShape       = "neither a JWT nor a signed session"
	whySignature   = "wrong signature"
	whyAlgorithm   = "algorithm not allowed"
	whyBadAlg      = "alg is not a string"
	whyBadTyp      = "typ is not JWT"
	whyBadKid      = "kid is not a string"
	whyBadSub      = "sub is not a string"
	whyBadUser     = "user id is empty, too long or has control characters"
	whyBadExp      = "exp is not a date"
	whyBadStart    = "nbf or iat is not a date"
	whyEarly       = "not valid yet"
	whyIssuer      = "another issuer"
	whyAudience    = "another audience"
	whyBadAudience = "aud is neither a string nor strings"
)

func hostileSpellings() []hostileToken {
	good := withClaims(nil)
	parts := strings.Split(good, ".")
	return []hostileToken{
		{"garbage", "garbage", whyShape},
		{"only dots", "..", "no signature"},
		{"four parts", good + ".x", whyShape},
		{"encrypted: five parts", parts[0] + ".a.b.c.d", whyShape},
		{"over 8 KiB", good + strings.Repeat("A", 8<<10+1-len(good)), "token over 8 KiB"},
		{"of 8 KiB", good + strings.Repeat("A", 8<<10-len(good)), whySignature},
		{"empty signature", parts[0] + "." + parts[1] + ".", "no signature"},
		{"padded signature", good + "=", whyBase64url},
		{"padded header", parts[0] + "=." + parts[1] + "." + parts[2], whyBase64url},
		{"last character not canonical", otherLastCharacter(good), whyBase64url},
		{"standard base64", parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:], whyBase64url},
		{"space inside", parts[0] + "." + parts[1] + ". " + parts[2], whyBase64url},
		{"line break in the signature", parts[0] + "." + parts[1] + "." + parts[2][:9] + "\n" + parts[2][9:], whyBase64url},
		{"carriage return in the header", parts[0] + "\r." + parts[1] + "." + parts[2], whyBase64url},
		{"percent-encoded", strings.ReplaceAll(good, "-", "%2D") + "%3D", whyBase64url},
		{"two tokens", good + ", Bearer " + good, whyShape},
	}
}

func hostileSignatures() []hostileToken {
	parts := strings.Split(withClaims(nil), ".")
	flipped := "A" + parts[2][1:]
	if flipped == parts[2] {
		flipped = "B" + parts[2][1:]
	}
	return []hostileToken{
		{"flipped signature", parts[0] + "." + parts[1] + "." + flipped, whySignature},
		{"short signature", parts[0] + "." + parts[1] + "." + parts[2][:40], whySignature},
		{"other claims", parts[0] + "." + authB64(claimsWith(map[string]any{"sub": "eve"})) + "." + parts[2], whySignature},
		{"other secret", signRawWith(sha256.New, []byte(strings.Repeat("x", 32)), plainHeader, claimsWith(nil)), whySignature},
		{"empty secret", signRawWith(sha256.New, nil, plainHeader, claimsWith(nil)), whySignature},
		{"HS512 under the name HS256", signRawWith(sha512.New, authTestSecret, plainHeader, claimsWith(nil)), whySignature},
	}
}

func hostileAlgorithms() []hostileToken {
	return []hostileToken{
		{"alg none", authB64(`{"alg":"none"}`) + "." + authB64(claimsWith(nil)) + ".", "no signature"},
		{"alg none, signed", withHeader(`{"alg":"none"}`), whyAlgorithm},
		{"alg nOnE", withHeader(`{"alg":"nOnE"}`), whyAlgorithm},
		{"alg empty", withHeader(`{"alg":""}`), whyAlgorithm},
		{"alg in lower case", withHeader(`{"alg":"hs256"}`), whyAlgorithm},
		{"alg HS384", signRawWith(sha512.New384, authTestSecret, `{"alg":"HS384"}`, claimsWith(nil)), whyAlgorithm},
		{"alg HS512", signRawWith(sha512.New, authTestSecret, `{"alg":"HS512"}`, claimsWith(nil)), whyAlgorithm},
		{"alg missing", withHeader(`{"typ":"JWT"}`), whyBadAlg},
		{"alg null", withHeader(`{"alg":null}`), whyBadAlg},
		{"alg an array", withHeader(`{"alg":["HS256"]}`), whyBadAlg},
		{"Alg for alg", withHeader(`{"Alg":"HS256"}`), whyBadAlg},
	}
}

func hostileHeaders() []hostileToken {
	return []hostileToken{
		{"header not JSON", withHeader(`HS256`), whyBadHeader},
		{"header an array", withHeader(`[{"alg":"HS256"}]`), whyBadHeader},
		{"header null", withHeader(`null`), whyBadHeader},
		{"header with trailing data", withHeader(plainHeader + `{}`), whyBadHeader},
		{"header with a byte order mark", withHeader("\ufeff" + plainHeader), whyBadHeader},
		{"alg twice", withHeader(`{"alg":"none","alg":"HS256"}`), whyBadHeader},
		{"alg twice, one escaped", withHeader(`{"\u0061lg":"none","alg":"HS256"}`), whyBadHeader},
		{"duplicate in an unknown member", withHeader(`{"alg":"HS256","x":{"a":1,"a":2}}`), whyBadHeader},
		{"header not UTF-8", withHeader("{\"alg\":\"HS256\",\"x\":\"\xff\"}"), whyBadHeader},
		{"crit unknown", withHeader(`{"alg":"HS256","crit":["exp"],"exp":1}`), "header has crit"},
		{"crit empty", withHeader(`{"alg":"HS256","crit":[]}`), "header has crit"},
		{"crit null", withHeader(`{"alg":"HS256","crit":null}`), "header has crit"},
		{"crit b64", withHeader(`{"alg":"HS256","b64":false,"crit":["b64"]}`), "header has crit"},
		{"b64 without crit", withHeader(`{"alg":"HS256","b64":false}`), "header has b64"},
		{"zip", withHeader(`{"alg":"HS256","zip":"DEF"}`), "header has zip"},
		{"enc", withHeader(`{"alg":"HS256","enc":"A256GCM"}`), "header has enc"},
		{"nested", withHeader(`{"alg":"HS256","cty":"JWT"}`), "header has cty"},
		{"typ at+jwt", withHeader(`{"alg":"HS256","typ":"at+jwt"}`), whyBadTyp},
		{"typ JOSE", withHeader(`{"alg":"HS256","typ":"JOSE"}`), whyBadTyp},
		{"typ empty", withHeader(`{"alg":"HS256","typ":""}`), whyBadTyp},
		{"typ null", withHeader(`{"alg":"HS256","typ":null}`), whyBadTyp},
		{"typ a number", withHeader(`{"alg":"HS256","typ":1}`), whyBadTyp},
		{"kid a number", withHeader(`{"alg":"HS256","kid":1}`), whyBadKid},
		{"kid empty", withHeader(`{"alg":"HS256","kid":""}`), whyBadKid},
	}
}

func hostileJSON() []hostileToken {
	return []hostileToken{
		{"claims not JSON", signRaw(plainHeader, `sub=ada`), whyBadClaims},
		{"claims empty", signRaw(plainHeader, ``), whyBadClaims},
		{"claims an array", signRaw(plainHeader, `[]`), whyBadClaims},
		{"claims a string", signRaw(plainHeader, `"ada"`), whyBadClaims},
		{"claims with trailing data", signRaw(plainHeader, claimsWith(nil)+"x"), whyBadClaims},
		{"sub twice", signRaw(plainHeader, `{"sub":"eve",`+claimsWith(nil)[1:]), whyBadClaims},
		{"exp twice", signRaw(plainHeader, `{"exp":1,`+claimsWith(nil)[1:]), whyBadClaims},
		{"duplicate deep inside", withClaims(map[string]any{"x": authRaw(`[{"a":{"b":1,"b":2}}]`)}), whyBadClaims},
		{"nested without an end", signRaw(plainHeader, `{"x":`+strings.Repeat("[", 5000)), whyBadClaims},
		{"claims not UTF-8", signRaw(plainHeader, strings.Replace(claimsWith(nil), "ada", "ad\xe9", 1)), whyBadClaims},
		{"sub a lone surrogate", withClaims(map[string]any{"sub": authRaw(`"\ud800"`)}), whyBadClaims},
		{"NaN", signRaw(plainHeader, `{"exp":NaN,"sub":"ada"}`), whyBadClaims},
	}
}

func hostileUsers() []hostileToken {
	return []hostileToken{
		{"e-mail verification", signRaw(`{"alg":"HS256"}`, fmt.Sprintf(`{"email":"a@b.test","iat":%d,"exp":%d}`, authSeconds(0), authSeconds(time.Hour))), whyBadSub},
		{"sub missing", withClaims(map[string]any{"sub": nil}), whyBadSub},
		{"sub null", withClaims(map[string]any{"sub": authRaw(`null`)}), whyBadSub},
		{"sub a number", withClaims(map[string]any{"sub": 7}), whyBadSub},
		{"sub an array", withClaims(map[string]any{"sub": []string{"ada"}}), whyBadSub},
		{"SUB for sub", signRaw(plainHeader, strings.Replace(claimsWith(nil), `"sub"`, `"SUB"`, 1)), whyBadSub},
		{"sub empty", withClaims(map[string]any{"sub": ""}), whyBadUser},
		{"sub of 256 bytes", withClaims(map[string]any{"sub": strings.Repeat("é", 128)}), whyBadUser},
		{"sub with NUL", withClaims(map[string]any{"sub": "ada\x00"}), whyBadUser},
		{"sub with a line break", withClaims(map[string]any{"sub": "ada\neve"}), whyBadUser},
		{"sub with DEL", withClaims(map[string]any{"sub": "ada\x7f"}), whyBadUser},
		{"sub with a C1 control", withClaims(map[string]any{"sub": "ada\u0085"}), whyBadUser},
	}
}

func hostileTimes() []hostileToken {
	return []hostileToken{
		{"exp missing", withClaims(map[string]any{"exp": nil}), "no exp"},
		{"Exp for exp", signRaw(plainHeader, strings.Replace(claimsWith(nil), `"exp"`, `"Exp"`, 1)), "no exp"},
		{"exp null", withClaims(map[string]any{"exp": authRaw(`null`)}), whyBadExp},
		{"exp a string", withClaims(map[string]any{"exp": fmt.Sprint(authSeconds(time.Hour))}), whyBadExp},
		{"exp true", withClaims(map[string]any{"exp": true}), whyBadExp},
		{"exp infinite", withClaims(map[string]any{"exp": authRaw(`1e999`)}), whyBadExp},
		{"exp after the year 9999", withClaims(map[string]any{"exp": authRaw(`253402300800`)}), whyBadExp},
		{"exp in milliseconds", withClaims(map[string]any{"exp": authTestNow.UnixMilli()}), whyBadExp},
		{"exp negative", withClaims(map[string]any{"exp": -1}), whyBadExp},
		{"nbf ahead", withClaims(map[string]any{"nbf": authSeconds(31 * time.Second)}), whyEarly},
		{"nbf a string", withClaims(map[string]any{"nbf": "0"}), whyBadStart},
		{"nbf null", withClaims(map[string]any{"nbf": authRaw(`null`)}), whyBadStart},
		{"iat ahead", withClaims(map[string]any{"iat": authSeconds(31 * time.Second)}), whyEarly},
		{"iat a string", withClaims(map[string]any{"iat": "0"}), whyBadStart},
		{"iat negative", withClaims(map[string]any{"iat": -1}), whyBadStart},
	}
}

func hostileParties() []hostileToken {
	return []hostileToken{
		{"iss missing", withClaims(map[string]any{"iss": nil}), whyIssuer},
		{"iss another", withClaims(map[string]any{"iss": "https://issuer.test.evil"}), whyIssuer},
		{"iss with a slash", withClaims(map[string]any{"iss": authTestIssuer + "/"}), whyIssuer},
		{"iss in another case", withClaims(map[string]any{"iss": "https://Issuer.test"}), whyIssuer},
		{"iss an array", withClaims(map[string]any{"iss": []string{authTestIssuer}}), "iss is not a string"},
		{"aud missing", withClaims(map[string]any{"aud": nil}), whyAudience},
		{"aud another", withClaims(map[string]any{"aud": "other"}), whyAudience},
		{"aud in another case", withClaims(map[string]any{"aud": "Taskledger"}), whyAudience},
		{"aud of others", withClaims(map[string]any{"aud": []string{"a", "b"}}), whyAudience},
		{"aud an empty array", withClaims(map[string]any{"aud": []string{}}), whyAudience},
		{"aud a number", withClaims(map[string]any{"aud": 1}), whyBadAudience},
		{"aud null", withClaims(map[string]any{"aud": authRaw(`null`)}), whyBadAudience},
		{"aud an object", withClaims(map[string]any{"aud": map[string]any{"taskledger": 1}}), whyBadAudience},
		{"aud with a null", withClaims(map[string]any{"aud": authRaw(`["taskledger",null]`)}), whyBadAudience},
		{"aud with a number", withClaims(map[string]any{"aud": authRaw(`["taskledger",1]`)}), whyBadAudience},
	}
}

func TestAuthHostileTokens(t *testing.T) {
	t.Parallel()
	tests := slices.Concat(
		hostileSpellings(), hostileSignatures(), hostileAlgorithms(), hostileHeaders(),
		hostileJSON(), hostileUsers(), hostileTimes(), hostileParties(),
	)
	if len(tests) < 60 {
		t.Fatalf("%d hostile tokens, want at least 60", len(tests))
	}
	a := newTestAuthenticator(t, authStrictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			caller, err := a.Authenticate(authBearer(test.token))
			wantAuthRefused(t, err, authInvalid, test.reason)
			if caller != (Caller{}) {
				t.Errorf("a caller with the refusal: %+v", caller)
			}
			if _, err = a.Authenticate(authBearer(test.token)); err == nil {
				t.Error("accepted the second time")
			}
		})
	}
	if n := a.verified.Len(); n != 0 {
		t.Errorf("%d refused tokens are remembered", n)
	}
}

func TestAuthGoodTokens(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("é", 127) + "x"
	tests := []struct{ name, token, user string }{
		{"plain", withClaims(nil), "ada"},
		{"no typ", withHeader(`{"alg":"HS256"}`), "ada"},
		{"typ in lower case", withHeader(`{"typ":"jwt","alg":"HS256"}`), "ada"},
		{"white space in the header", withHeader(" {\"alg\" : \"HS256\"}\n"), "ada"},
		{"a kid", withHeader(`{"alg":"HS256","kid":"k1"}`), "ada"},
		{"keys in the header are ignored", withHeader(`{"alg":"HS256","jwk":{"kty":"oct","k":"eA"},"jku":"http://127.0.0.1:1/","x5u":"http://127.0.0.1:1/"}`), "ada"},
		{"aud one of several", withClaims(map[string]any{"aud": []string{"other", authTestAudience}}), "ada"},
		{"sub of 255 bytes", withClaims(map[string]any{"sub": longest}), longest},
		{"sub not normalised", withClaims(map[string]any{"sub": " Ada\u0301 "}), " Ada\u0301 "},
		{"sub escaped", withClaims(map[string]any{"sub": authRaw(`"\u0061da\ud83d\ude00"`)}), "ada😀"},
		{"unknown claims", withClaims(map[string]any{"Sub": "eve", "jti": 7, "scope": nil}), "ada"},
		{"exp a fraction", withClaims(map[string]any{"exp": authRaw(fmt.Sprintf("%d.5", authSeconds(0)))}), "ada"},
		{"exp with an exponent", withClaims(map[string]any{"exp": authRaw("2e9")}), "ada"},
		{"exp the last second", withClaims(map[string]any{"exp": authRaw("253402300799")}), "ada"},
		{"exp within the leeway", withClaims(map[string]any{"exp": authSeconds(-29 * time.Second)}), "ada"},
		{"nbf within the leeway", withClaims(map[string]any{"nbf": authSeconds(30 * time.Second)}), "ada"},
		{"iat within the leeway", withClaims(map[string]any{"iat": authSeconds(30 * time.Second)}), "ada"},
		{"no iat", withClaims(map[string]any{"iat": nil}), "ada"},
	}
	a := newTestAuthenticator(t, authStrictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			caller, err := a.Authenticate(authBearer(test.token))
			if err != nil {
				t.Fatal(err)
			}
			if caller.UserID != test.user || caller.Cookie {
				t.Fatalf("got %+v, want user %q by bearer", caller, test.user)
			}
		})
	}
}

func TestAuthIssuerAndAudienceAreFreeWhenNotConfigured(t *testing.T) {
	t.Parallel()
	a := newTestAuthenticator(t, AuthConfig{Secret: authTestSecret})
	for _, changes := range []map[string]any{
		{"iss": nil, "aud": nil},
		{"iss": "anyone", "aud": []string{}},
	} {
		if _, err := a.Authenticate(authBearer(withClaims(changes))); err != nil {
			t.Errorf("%v: %v", changes, err)
		}
	}
}

func TestAuthNoSecret(t *testing.T) {
	t.Parallel()
	a := newTestAuthenticator(t, AuthConfig{})
	for _, key := range [][]byte{nil, authTestSecret} {
		_, err := a.Authenticate(authBearer(signRawWith(sha256.New, key, plainHeader, claimsWith(nil))))
		wantAuthRefused(t, err, authInvalid, "no secret for HS256")
	}
}

func TestAuthExpiry(t *testing.T) {
	t.Parallel()
	clock := &authTestClock{at: authTestNow}
	cfg := authStrictConfig()
	cfg.Now = clock.now
	a := newTestAuthenticator(t, cfg)
	exp := authTestNow.Add(time.Minute)
	token := withClaims(map[string]any{"exp": exp.Unix()})
	for range 2 { // The second time from the cache.
		caller, err := a.Authenticate(authBearer(token))
		if err != nil || !caller.Expires.Equal(exp) {
			t.Fatalf("got %v, %v; want expiry %v", caller, err, exp)
		}
	}
	clock.at = exp.Add(30*time.Second - time.Nanosecond)
	if _, err := a.Authenticate(authBearer(token)); err != nil {
		t.Fatalf("within the leeway: %v", err)
	}
	clock.at = exp.Add(30 * time.Second)
	_, err := a.Authenticate(authBearer(token))
	wantAuthRefused(t, err, authExpired, "exp has passed")
	a.verified.Purge()
	_, err = a.Authenticate(authBearer(token))
	wantAuthRefused(t, err, authExpired, "exp has passed")
}

func TestAuthAnExpiredTokenIsInvalidWhenAnythingElseIsWrong(t *testing.T) {
	t.Parallel()
	a := newTestAuthenticator(t, authStrictConfig())
	past := map[string]any{"exp": authSeconds(-time.Hour), "aud": "other"}
	_, err := a.Authenticate(authBearer(withClaims(past)))
	wantAuthRefused(t, err, authInvalid, "another audience")
	_, err = a.Authenticate(authBearer(signRawWith(sha256.New, []byte("x"), plainHeader, claimsWith(past))))
	wantAuthRefused(t, err, authInvalid, "wrong signature")
}

func TestAuthTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	a := newTestAuthenticator(t, authStrictConfig())
	for i := range tokensKept + 10 {
		a.verified.Add(sha256.Sum256(fmt.Append(nil, i)), verifiedToken{})
	}
	if n := a.verified.Len(); n != tokensKept {
		t.Errorf("%d tokens kept, want %d", n, tokensKept)
	}
}

func TestAuthAuthorizationHeader(t *testing.T) {
	t.Parallel()
	good := withClaims(nil)
	tests := []struct {
		name         string
		sent         []string
		code, reason string
	}{
		{"none", nil, authUnauthenticated, "no credentials"},
		{"Bearer", []string{"Bearer " + good}, "", ""},
		{"bearer", []string{"bearer " + good}, "", ""},
		{"BEARER and spaces", []string{"BEARER   " + good}, "", ""},
		{"two", []string{"Bearer " + good, "Bearer " + good}, authInvalid, "more than one Authorization header"},
		{"empty", []string{""}, authInvalid, "not the Bearer scheme"},
		{"Basic", []string{"Basic YTpi"}, authInvalid, "not the Bearer scheme"},
		{"no scheme", []string{good}, authInvalid, "not the Bearer scheme"},
		{"a tab", []string{"Bearer\t" + good}, authInvalid, "not the Bearer scheme"},
		{"no token", []string{"Bearer"}, authInvalid, "empty bearer"},
		{"only spaces", []string{"Bearer   "}, authInvalid, "empty bearer"},
	}
	a := newTestAuthenticator(t, authStrictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
			if test.sent != nil {
				r.Header["Authorization"] = test.sent
			}
			_, err := a.Authenticate(r)
			if test.code != "" {
				wantAuthRefused(t, err, test.code, test.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAuthConfigThatCanNeverWork(t *testing.T) {
	t.Parallel()
	_, err := NewAuthenticator(t.Context(), AuthConfig{Secret: []byte("short, and never in an error")})
	if err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a short secret: %v", err)
	}
}

func TestAuthSignToken(t *testing.T) {
	t.Parallel()
	token, err := SignToken(authTestSecret, "ada", authTestIssuer, authTestAudience, authTestNow, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := newTestAuthenticator(t, authStrictConfig())
	caller, err := a.Authenticate(authBearer(token))
	if want := (Caller{UserID: "ada", Expires: authTestNow.Add(time.Hour)}); err != nil || caller.UserID != want.UserID || !caller.Expires.Equal(want.Expires) {
		t.Errorf("got %+v, %v; want %+v", caller, err, want)
	}
	if _, err = SignToken(authTestSecret[:31], "ada", "", "", authTestNow, time.Hour); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err = SignToken(authTestSecret, "a\x00", "", "", authTestNow, time.Hour); err == nil {
		t.Error("a user with NUL was taken")
	}
}

// FuzzAuthenticate: no input panics, and what is accepted verifies by golang-jwt too and says the same.
func FuzzAuthenticate(f *testing.F) {
	f.Add("Bearer "+withClaims(nil), plainHeader, claimsWith(nil))
	f.Add("bearer "+otherLastCharacter(withClaims(nil)), `{"alg":"none"}`, claimsWith(map[string]any{"aud": []string{"a"}}))
	f.Add("Basic x", `{"alg":"HS256","crit":[]}`, `{"sub":"a","exp":1e11,"nbf":0.5}`)
	f.Add("", `{"alg":"HS256","kid":"x"}`, `{"sub":"\ud83d\ude00","exp":4000000000,"iat":1,"aud":["taskledger"]}`)
	f.Add("better-auth.session_data.0="+cacheToken(nil), `{"alg":"HS256"}`, claimsWith(cacheClaims(nil)))
	a := newTestAuthenticator(f, AuthConfig{Secret: authTestSecret})
	f.Fuzz(func(t *testing.T, header, joseHeader, claims string) {
		token := signRaw(joseHeader, claims)
		for credential, r := range map[string]*http.Request{
			strings.TrimLeft(header[min(len(header), len("Bearer ")):], " "): headerRequest("Authorization", header),
			token:             headerRequest("Authorization", "Bearer "+token),
			token + "_cookie": headerRequest("Cookie", "better-auth.session_data="+token),
		} {
			if caller, err := a.Authenticate(r); err == nil {
				authVerifyAgain(t, strings.TrimSuffix(credential, "_cookie"), caller)
			}
		}
		_, _ = a.Authenticate(headerRequest("Cookie", header))
	})
}

func headerRequest(name, value string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set(name, value)
	return r
}

func authVerifyAgain(t *testing.T, token string, caller Caller) {
	t.Helper()
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithStrictDecoding(), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway), jwt.WithTimeFunc(func() time.Time { return authTestNow }),
	).ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return authTestSecret, nil })
	if err != nil {
		t.Fatalf("accepted, but golang-jwt says %v", err)
	}
	if user := claimedUser(claims); user == "" || user != caller.UserID {
		t.Fatalf("user %q, but the claims name %q", caller.UserID, user)
	}
	if !caller.Expires.Add(tokenLeeway).After(authTestNow) {
		t.Fatalf("accepted after its end %v", caller.Expires)
	}
}

// claimedUser reads the two kinds of login in another way than the code does.
func claimedUser(claims jwt.MapClaims) string {
	if sub, there := claims["sub"]; there {
		name, _ := sub.(string)
		return name
	}
	session, _ := claims["session"].(map[string]any)
	user, _ := claims["user"].(map[string]any)
	name, _ := user["id"].(string)
	if owner, _ := session["userId"].(string); owner != name {
		return ""
	}
	return name
}

func BenchmarkAuthenticate(b *testing.B) {
	a := newTestAuthenticator(b, authStrictConfig())
	r := authBearer(withClaims(nil))
	b.Run("verified before", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Authenticate(r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first time", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.verified.Purge()
			if _, err := a.Authenticate(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
