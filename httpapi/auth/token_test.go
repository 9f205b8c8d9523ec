package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
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
	testIssuer   = "https://issuer.test"
	testAudience = "taskledger"
)

var (
	testSecret      = []byte("0123456789abcdef0123456789abcdef")
	otherTestSecret = []byte("x123456789abcdef0123456789abcdef")
	testNow         = time.Date(2026, 11, 22, 19, 43, 57, 0, time.UTC)
)

// testClock is a clock that only moves when it is told to.
type testClock struct{ at time.Time }

func (c *testClock) now() time.Time { return c.at }

func newAuthenticator(t testing.TB, cfg Config) *Authenticator {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return testNow }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(a.Close)
	return a
}

func strictConfig() Config {
	return Config{Secret: testSecret, Issuer: testIssuer, Audience: testAudience}
}

func withBearer(token string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signRaw signs header and claims exactly as they are written.
func signRaw(header, claims string) string {
	return signRawWith(sha256.New, testSecret, header, claims)
}

func signRawWith(h func() hash.Hash, key []byte, header, claims string) string {
	signed := b64(header) + "." + b64(claims)
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
		"sub": "ada", "iss": testIssuer, "aud": testAudience,
		"iat": testNow.Unix(), "exp": testNow.Add(time.Hour).Unix(),
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

func raw(text string) json.RawMessage { return json.RawMessage(text) }

func seconds(d time.Duration) int64 { return testNow.Add(d).Unix() }

// otherLastCharacter spells the same bytes differently: it sets a pad bit.
func otherLastCharacter(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func hostileSpellings() []hostileToken {
	good := withClaims(nil)
	parts := strings.Split(good, ".")
	return []hostileToken{
		{"garbage", "garbage", whyShape},
		{"only dots", "..", whyUnsigned},
		{"four parts", good + ".x", whyShape},
		{"encrypted: five parts", parts[0] + ".a.b.c.d", whyShape},
		{"over 8 KiB", good + strings.Repeat("A", 8<<10+1-len(good)), whyTooLong},
		{"of 8 KiB", good + strings.Repeat("A", 8<<10-len(good)), whySecret},
		{"empty signature", parts[0] + "." + parts[1] + ".", whyUnsigned},
		{"padded signature", good + "=", whyBase64url},
		{"padded header", parts[0] + "=." + parts[1] + "." + parts[2], whyBase64url},
		{"last character not canonical", otherLastCharacter(good), whyBase64url},
		{"standard base64", parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:], whyBase64url},
		{"space inside", parts[0] + "." + parts[1] + ". " + parts[2], whyBase64url},
		{"line break in the signature", good[:len(good)-9] + "\n" + good[len(good)-9:], whyBase64url},
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
		{"flipped signature", parts[0] + "." + parts[1] + "." + flipped, whySecret},
		{"short signature", parts[0] + "." + parts[1] + "." + parts[2][:40], whySecret},
		{"other claims", parts[0] + "." + b64(claimsWith(map[string]any{"sub": "eve"})) + "." + parts[2], whySecret},
		{"other secret", signRawWith(sha256.New, otherTestSecret, plainHeader, claimsWith(nil)), whySecret},
		{"empty secret", signRawWith(sha256.New, nil, plainHeader, claimsWith(nil)), whySecret},
		{"HS512 under the name HS256", signRawWith(sha512.New, testSecret, plainHeader, claimsWith(nil)), whySecret},
	}
}

func hostileAlgorithms() []hostileToken {
	return []hostileToken{
		{"alg none", b64(`{"alg":"none"}`) + "." + b64(claimsWith(nil)) + ".", whyUnsigned},
		{"alg none, signed", withHeader(`{"alg":"none"}`), whyAlgorithm},
		{"alg nOnE", withHeader(`{"alg":"nOnE"}`), whyAlgorithm},
		{"alg empty", withHeader(`{"alg":""}`), whyAlgorithm},
		{"alg in lower case", withHeader(`{"alg":"hs256"}`), whyAlgorithm},
		{"alg HS384", signRawWith(sha512.New384, testSecret, `{"alg":"HS384"}`, claimsWith(nil)), whyAlgorithm},
		{"alg HS512", signRawWith(sha512.New, testSecret, `{"alg":"HS512"}`, claimsWith(nil)), whyAlgorithm},
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
		{"crit unknown", withHeader(`{"alg":"HS256","crit":["exp"],"exp":1}`), whyCrit},
		{"crit empty", withHeader(`{"alg":"HS256","crit":[]}`), whyCrit},
		{"crit null", withHeader(`{"alg":"HS256","crit":null}`), whyCrit},
		{"crit b64", withHeader(`{"alg":"HS256","b64":false,"crit":["b64"]}`), whyCrit},
		{"b64 without crit", withHeader(`{"alg":"HS256","b64":false}`), Error{Unsupported, "header has b64"}},
		{"zip", withHeader(`{"alg":"HS256","zip":"DEF"}`), Error{Unsupported, "header has zip"}},
		{"enc", withHeader(`{"alg":"HS256","enc":"A256GCM"}`), Error{Unsupported, "header has enc"}},
		{"nested", withHeader(`{"alg":"HS256","cty":"JWT"}`), Error{Unsupported, "header has cty"}},
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
		{"duplicate deep inside", withClaims(map[string]any{"x": raw(`[{"a":{"b":1,"b":2}}]`)}), whyBadClaims},
		{"nested without an end", signRaw(plainHeader, `{"x":`+strings.Repeat("[", 5000)), whyBadClaims},
		{"claims not UTF-8", signRaw(plainHeader, strings.Replace(claimsWith(nil), "ada", "ad\xe9", 1)), whyBadClaims},
		{"sub a lone surrogate", withClaims(map[string]any{"sub": raw(`"\ud800"`)}), whyBadClaims},
		{"NaN", signRaw(plainHeader, `{"exp":NaN,"sub":"ada"}`), whyBadClaims},
	}
}

func hostileUsers() []hostileToken {
	verification := fmt.Sprintf(`{"email":"a@b.test","iat":%d,"exp":%d}`, seconds(0), seconds(time.Hour))
	return []hostileToken{
		{"e-mail verification", signRaw(`{"alg":"HS256"}`, verification), whyBadSub},
		{"sub missing", withClaims(map[string]any{"sub": nil}), whyBadSub},
		{"sub null", withClaims(map[string]any{"sub": raw(`null`)}), whyBadSub},
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
		{"exp missing", withClaims(map[string]any{"exp": nil}), whyNoExp},
		{"Exp for exp", signRaw(plainHeader, strings.Replace(claimsWith(nil), `"exp"`, `"Exp"`, 1)), whyNoExp},
		{"exp null", withClaims(map[string]any{"exp": raw(`null`)}), whyBadExp},
		{"exp a string", withClaims(map[string]any{"exp": fmt.Sprint(seconds(time.Hour))}), whyBadExp},
		{"exp true", withClaims(map[string]any{"exp": true}), whyBadExp},
		{"exp infinite", withClaims(map[string]any{"exp": raw(`1e999`)}), whyBadExp},
		{"exp after the year 9999", withClaims(map[string]any{"exp": raw(`253402300800`)}), whyBadExp},
		{"exp in milliseconds", withClaims(map[string]any{"exp": testNow.UnixMilli()}), whyBadExp},
		{"exp negative", withClaims(map[string]any{"exp": -1}), whyBadExp},
		{"nbf ahead", withClaims(map[string]any{"nbf": seconds(31 * time.Second)}), whyEarly},
		{"nbf a string", withClaims(map[string]any{"nbf": "0"}), whyBadStart},
		{"nbf null", withClaims(map[string]any{"nbf": raw(`null`)}), whyBadStart},
		{"iat ahead", withClaims(map[string]any{"iat": seconds(31 * time.Second)}), whyEarly},
		{"iat a string", withClaims(map[string]any{"iat": "0"}), whyBadStart},
		{"iat negative", withClaims(map[string]any{"iat": -1}), whyBadStart},
	}
}

func hostileParties() []hostileToken {
	return []hostileToken{
		{"iss missing", withClaims(map[string]any{"iss": nil}), whyIssuer},
		{"iss another", withClaims(map[string]any{"iss": "https://issuer.test.evil"}), whyIssuer},
		{"iss with a slash", withClaims(map[string]any{"iss": testIssuer + "/"}), whyIssuer},
		{"iss in another case", withClaims(map[string]any{"iss": "https://Issuer.test"}), whyIssuer},
		{"iss an array", withClaims(map[string]any{"iss": []string{testIssuer}}), whyBadIssuer},
		{"aud missing", withClaims(map[string]any{"aud": nil}), whyAudience},
		{"aud another", withClaims(map[string]any{"aud": "other"}), whyAudience},
		{"aud in another case", withClaims(map[string]any{"aud": "Taskledger"}), whyAudience},
		{"aud of others", withClaims(map[string]any{"aud": []string{"a", "b"}}), whyAudience},
		{"aud an empty array", withClaims(map[string]any{"aud": []string{}}), whyAudience},
		{"aud a number", withClaims(map[string]any{"aud": 1}), whyBadAudience},
		{"aud null", withClaims(map[string]any{"aud": raw(`null`)}), whyBadAudience},
		{"aud an object", withClaims(map[string]any{"aud": map[string]any{"taskledger": 1}}), whyBadAudience},
		{"aud with a null", withClaims(map[string]any{"aud": raw(`["taskledger",null]`)}), whyBadAudience},
		{"aud with a number", withClaims(map[string]any{"aud": raw(`["taskledger",1]`)}), whyBadAudience},
	}
}

func TestHostileTokens(t *testing.T) {
	t.Parallel()
	tests := slices.Concat(
		hostileSpellings(), hostileSignatures(), hostileAlgorithms(), hostileHeaders(),
		hostileJSON(), hostileUsers(), hostileTimes(), hostileParties(),
	)
	if len(tests) < 60 {
		t.Fatalf("%d hostile tokens, want at least 60", len(tests))
	}
	a := newAuthenticator(t, strictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			caller, err := a.Authenticate(withBearer(test.token))
			wantRefused(t, err, test.why)
			if caller != (Caller{}) {
				t.Errorf("a caller with the refusal: %+v", caller)
			}
			if _, err = a.Authenticate(withBearer(test.token)); err == nil {
				t.Error("accepted the second time")
			}
		})
	}
	if n := a.verified.Len(); n != 0 {
		t.Errorf("%d refused tokens are remembered", n)
	}
}

func TestGoodTokens(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("é", 127) + "x"
	const ownKey = `{"alg":"HS256","jwk":{"kty":"oct","k":"eA"},"jku":"http://127.0.0.1:1/","x5u":"http://127.0.0.1/"}`
	tests := []struct{ name, token, user string }{
		{"plain", withClaims(nil), "ada"},
		{"no typ", withHeader(`{"alg":"HS256"}`), "ada"},
		{"typ in lower case", withHeader(`{"typ":"jwt","alg":"HS256"}`), "ada"},
		{"white space in the header", withHeader(" {\"alg\" : \"HS256\"}\n"), "ada"},
		{"a kid", withHeader(`{"alg":"HS256","kid":"k1"}`), "ada"},
		{"keys in the header are ignored", withHeader(ownKey), "ada"},
		{"aud one of several", withClaims(map[string]any{"aud": []string{"other", testAudience}}), "ada"},
		{"sub of 255 bytes", withClaims(map[string]any{"sub": longest}), longest},
		{"sub not normalised", withClaims(map[string]any{"sub": " Ada\u0301 "}), " Ada\u0301 "},
		{"sub escaped", withClaims(map[string]any{"sub": raw(`"\u0061da\ud83d\ude00"`)}), "ada😀"},
		{"unknown claims", withClaims(map[string]any{"Sub": "eve", "jti": 7, "scope": nil}), "ada"},
		{"exp a fraction", withClaims(map[string]any{"exp": raw(fmt.Sprintf("%d.5", seconds(0)))}), "ada"},
		{"exp with an exponent", withClaims(map[string]any{"exp": raw("2e9")}), "ada"},
		{"exp the last second", withClaims(map[string]any{"exp": raw("253402300799")}), "ada"},
		{"exp within the leeway", withClaims(map[string]any{"exp": seconds(-29 * time.Second)}), "ada"},
		{"nbf within the leeway", withClaims(map[string]any{"nbf": seconds(30 * time.Second)}), "ada"},
		{"iat within the leeway", withClaims(map[string]any{"iat": seconds(30 * time.Second)}), "ada"},
		{"no iat", withClaims(map[string]any{"iat": nil}), "ada"},
	}
	a := newAuthenticator(t, strictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			caller, err := a.Authenticate(withBearer(test.token))
			if err != nil {
				t.Fatal(err)
			}
			if caller.UserID != test.user || caller.Cookie {
				t.Fatalf("got %+v, want user %q by bearer", caller, test.user)
			}
		})
	}
}

func TestIssuerAndAudienceAreFreeWhenNotConfigured(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Secret: testSecret})
	for _, changes := range []map[string]any{
		{"iss": nil, "aud": nil},
		{"iss": "anyone", "aud": []string{}},
	} {
		if _, err := a.Authenticate(withBearer(withClaims(changes))); err != nil {
			t.Errorf("%v: %v", changes, err)
		}
	}
}

func TestNoSecret(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{})
	for _, key := range [][]byte{nil, testSecret} {
		_, err := a.Authenticate(withBearer(signRawWith(sha256.New, key, plainHeader, claimsWith(nil))))
		wantRefused(t, err, whyNoSecret)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	clock := &testClock{at: testNow}
	cfg := strictConfig()
	cfg.Now = clock.now
	a := newAuthenticator(t, cfg)
	exp := testNow.Add(time.Minute)
	token := withClaims(map[string]any{"exp": exp.Unix()})
	for range 2 { // The second time from the cache.
		caller, err := a.Authenticate(withBearer(token))
		if err != nil || !caller.Expires.Equal(exp) {
			t.Fatalf("got %v, %v; want expiry %v", caller, err, exp)
		}
	}
	clock.at = exp.Add(30*time.Second - time.Nanosecond)
	if _, err := a.Authenticate(withBearer(token)); err != nil {
		t.Fatalf("within the leeway: %v", err)
	}
	clock.at = exp.Add(30 * time.Second)
	_, err := a.Authenticate(withBearer(token))
	wantRefused(t, err, whyExpired)
	a.verified.Purge()
	_, err = a.Authenticate(withBearer(token))
	wantRefused(t, err, whyExpired)
}

func TestAnExpiredTokenIsInvalidWhenAnythingElseIsWrong(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, strictConfig())
	past := map[string]any{"exp": seconds(-time.Hour), "aud": "other"}
	_, err := a.Authenticate(withBearer(withClaims(past)))
	wantRefused(t, err, whyAudience)
	_, err = a.Authenticate(withBearer(signRawWith(sha256.New, []byte("x"), plainHeader, claimsWith(past))))
	wantRefused(t, err, whySecret)
}

func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, strictConfig())
	for i := range tokensKept + 10 {
		a.verified.Add(sha256.Sum256(fmt.Append(nil, i)), verifiedToken{})
	}
	if n := a.verified.Len(); n != tokensKept {
		t.Errorf("%d tokens kept, want %d", n, tokensKept)
	}
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	good := withClaims(nil)
	tests := []struct {
		name string
		sent []string
		why  Error
	}{
		{"none", nil, whyNothing},
		{"Bearer", []string{"Bearer " + good}, Error{}},
		{"bearer", []string{"bearer " + good}, Error{}},
		{"BEARER and spaces", []string{"BEARER   " + good}, Error{}},
		{"two", []string{"Bearer " + good, "Bearer " + good}, Error{Ambiguous, "more than one Authorization header"}},
		{"empty", []string{""}, whyScheme},
		{"Basic", []string{"Basic YTpi"}, whyScheme},
		{"no scheme", []string{good}, whyScheme},
		{"a tab", []string{"Bearer\t" + good}, whyScheme},
		{"no token", []string{"Bearer"}, whyEmpty},
		{"only spaces", []string{"Bearer   "}, whyEmpty},
	}
	a := newAuthenticator(t, strictConfig())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
			if test.sent != nil {
				r.Header["Authorization"] = test.sent
			}
			_, err := a.Authenticate(r)
			if test.why != (Error{}) {
				wantRefused(t, err, test.why)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestConfigThatCanNeverWork(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Config{Secret: []byte("short, and never in an error")})
	if err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a short secret: %v", err)
	}
}

func TestSignToken(t *testing.T) {
	t.Parallel()
	token, err := SignToken(testSecret, "ada", testIssuer, testAudience, testNow, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, strictConfig())
	caller, err := a.Authenticate(withBearer(token))
	if err != nil || caller.UserID != "ada" || !caller.Expires.Equal(testNow.Add(time.Hour)) {
		t.Errorf("got %+v, %v", caller, err)
	}
	if _, err = SignToken(testSecret[:31], "ada", "", "", testNow, time.Hour); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err = SignToken(testSecret, "a\x00", "", "", testNow, time.Hour); err == nil {
		t.Error("a user with NUL was taken")
	}
}

// FuzzAuthenticate: no input panics, and what is accepted verifies by golang-jwt too and says the same.
func FuzzAuthenticate(f *testing.F) {
	f.Add("Bearer "+withClaims(nil), plainHeader, claimsWith(nil))
	f.Add("bearer "+otherLastCharacter(withClaims(nil)), `{"alg":"none"}`, `{"sub":"a","exp":1e11,"aud":["a"]}`)
	f.Add("Basic x", `{"alg":"HS256","crit":[]}`, `{"sub":"a","exp":1e11,"nbf":0.5}`)
	f.Add("", `{"alg":"HS256","kid":"x"}`, `{"sub":"\ud83d\ude00","exp":4000000000,"iat":1,"aud":["taskledger"]}`)
	f.Add("better-auth.session_data.0="+cacheToken(nil), `{"alg":"HS256"}`, claimsWith(cacheClaims(nil)))
	a := newAuthenticator(f, Config{Secret: testSecret})
	f.Fuzz(func(t *testing.T, header, joseHeader, claims string) {
		token := signRaw(joseHeader, claims)
		for credential, r := range map[string]*http.Request{
			strings.TrimLeft(header[min(len(header), len("Bearer ")):], " "): headerRequest("Authorization", header),
			token:             headerRequest("Authorization", "Bearer "+token),
			token + "_cookie": headerRequest("Cookie", "better-auth.session_data="+token),
		} {
			if caller, err := a.Authenticate(r); err == nil {
				verifyAgain(t, strings.TrimSuffix(credential, "_cookie"), caller)
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

func verifyAgain(t *testing.T, token string, caller Caller) {
	t.Helper()
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithStrictDecoding(), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway), jwt.WithTimeFunc(func() time.Time { return testNow }),
	).ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return testSecret, nil })
	if err != nil {
		t.Fatalf("accepted, but golang-jwt says %v", err)
	}
	if user := claimedUser(claims); user == "" || user != caller.UserID {
		t.Fatalf("user %q, but the claims name %q", caller.UserID, user)
	}
	if !caller.Expires.Add(tokenLeeway).After(testNow) {
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
	a := newAuthenticator(b, strictConfig())
	r := withBearer(withClaims(nil))
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
