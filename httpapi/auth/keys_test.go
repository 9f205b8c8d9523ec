package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
)

const testJWKS = "https://auth.test/api/auth/jwks"

// keyIssuer is a JWKS and the private keys to it, reached without a network: an http.RoundTripper, so that it works in
// a synctest bubble.
type keyIssuer struct {
	mu      sync.Mutex
	private map[string]crypto.Signer
	handler http.HandlerFunc // in place of the set when not nil
	asked   []string         // URLs
}

func newKeyIssuer(keys map[string]crypto.Signer) *keyIssuer { return &keyIssuer{private: keys} }

func (i *keyIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.asked = append(i.asked, r.URL.String())
	handler, body := i.handler, i.set()
	i.mu.Unlock()
	if handler == nil {
		handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }
	}
	answer := httptest.NewRecorder()
	handler(answer, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return answer.Result(), nil
}

func (i *keyIssuer) set() []byte {
	members := []map[string]string{}
	for kid, key := range i.private {
		members = append(members, publicJWK(kid, key.Public()))
	}
	body, err := json.Marshal(map[string]any{"keys": members})
	if err != nil {
		panic(err)
	}
	return body
}

func (i *keyIssuer) replace(keys map[string]crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.private = keys
}

func (i *keyIssuer) answer(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handler = h
}

func (i *keyIssuer) fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.asked)
}

// serve answers every request with what body returns, and returns where.
func serve(t testing.TB, body func() []byte) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body())
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func publicJWK(kid string, key crypto.PublicKey) map[string]string {
	enc := base64.RawURLEncoding.EncodeToString
	switch key := key.(type) {
	case ed25519.PublicKey:
		return map[string]string{"kid": kid, "kty": "OKP", "crv": "Ed25519", "x": enc(key)}
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4, x, y
		if err != nil {
			panic(err)
		}
		size := len(point) / 2
		return map[string]string{
			"kid": kid, "kty": "EC", "crv": key.Curve.Params().Name,
			"x": enc(point[1 : 1+size]), "y": enc(point[1+size:]),
		}
	case *rsa.PublicKey:
		return map[string]string{
			"kid": kid, "kty": "RSA", "n": enc(key.N.Bytes()), "e": enc(big.NewInt(int64(key.E)).Bytes()),
		}
	}
	panic(fmt.Sprintf("no JWK for %T", key))
}

// Keys are made once: an RSA key takes a while.
var (
	testEd, testEd2 = newEdKey(), newEdKey()
	testEC          = newECKey(elliptic.P256())
	testRSA         = newRSAKey(2048)
)

func newEdKey() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func newECKey(curve elliptic.Curve) crypto.Signer {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func newRSAKey(bits int) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

func threeKeys() map[string]crypto.Signer {
	return map[string]crypto.Signer{"ed": testEd, "ec": testEC, "rsa": testRSA}
}

// newKeyAuthenticator waits for nothing: in a bubble, synctest.Wait waits for the first fetch.
func newKeyAuthenticator(t *testing.T, issuer *keyIssuer, cfg Config) *Authenticator {
	t.Helper()
	cfg.JWKSURL = testJWKS
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a, err := build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.keys.client.Transport = issuer
	a.keys.start(t.Context())
	t.Cleanup(a.Close)
	return a
}

// signJWT signs with golang-jwt; the header is what a token says of itself, the key what it is signed with.
func signJWT(t *testing.T, method jwt.SigningMethod, key any, header map[string]any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	delete(token.Header, "typ") // As Better Auth does.
	maps.Copy(token.Header, header)
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func kid(id string) map[string]any { return map[string]any{"kid": id} }

// lasting are claims that outlive a test in a bubble, whose clock starts in the year 2000.
func lasting() jwt.MapClaims {
	return jwt.MapClaims{"sub": "ada", "exp": testNow.Add(time.Hour).Unix()}
}

func errorOf(a *Authenticator, token string) error {
	_, err := a.Authenticate(withBearer(token))
	return err
}

func TestKeysOfEveryKind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newKeyAuthenticator(t, newKeyIssuer(threeKeys()), Config{})
		for name, token := range map[string]string{
			"EdDSA": signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting()),
			"ES256": signJWT(t, jwt.SigningMethodES256, testEC, kid("ec"), lasting()),
			"RS256": signJWT(t, jwt.SigningMethodRS256, testRSA, kid("rsa"), lasting()),
		} {
			for range 2 {
				caller, err := a.Authenticate(withBearer(token))
				if err != nil || caller.UserID != "ada" {
					t.Errorf("%s: got %+v, %v", name, caller, err)
				}
			}
		}
	})
}

// keyConfusions use a key that is held for what it is not for.
func keyConfusions(t *testing.T) []hostileToken {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(testEd.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	rawPublic := []byte(testEd.Public().(ed25519.PublicKey))
	ec := signJWT(t, jwt.SigningMethodES256, testEC, kid("ec"), lasting())
	ed := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())
	unsigned := ec[:strings.LastIndexByte(ec, '.')+1]
	sum := sha256.Sum256([]byte(unsigned[:len(unsigned)-1]))
	derSignature, err := testEC.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(method jwt.SigningMethod, key any, header map[string]any) string {
		return signJWT(t, method, key, header, lasting())
	}
	return []hostileToken{
		{"no kid", sign(jwt.SigningMethodEdDSA, testEd, nil), Error{UnknownKey, "names no key"}},
		{"unknown kid", sign(jwt.SigningMethodEdDSA, testEd, kid("nobody")), whyUnknownKid},
		{"kid with a path", sign(jwt.SigningMethodEdDSA, testEd, kid("../ed")), whyUnknownKid},
		{"kid with SQL", sign(jwt.SigningMethodEdDSA, testEd, kid("ed' OR '1'='1")), whyUnknownKid},
		{"kid with NUL", sign(jwt.SigningMethodEdDSA, testEd, kid("ed\x00")), whyUnknownKid},
		{"kid in another case", sign(jwt.SigningMethodEdDSA, testEd, kid("ED")), whyUnknownKid},
		{"another's key", sign(jwt.SigningMethodEdDSA, testEd2, kid("ed")), whySignature},
		{"HS256 with the public key", sign(jwt.SigningMethodHS256, rawPublic, kid("ed")), whySecret},
		{"HS256 with the public key as PEM", sign(jwt.SigningMethodHS256, publicPEM, kid("ed")), whySecret},
		{"ES256 named EdDSA", b64(`{"alg":"EdDSA","kid":"ec"}`) + ec[strings.IndexByte(ec, '.'):], whyOtherKey},
		{"EdDSA named RS256", b64(`{"alg":"RS256","kid":"ed"}`) + ed[strings.IndexByte(ed, '.'):], whyOtherKey},
		{"EdDSA by the kid of the RSA key", sign(jwt.SigningMethodEdDSA, testEd, kid("rsa")), whyOtherKey},
		{"RS384", sign(jwt.SigningMethodRS384, testRSA, kid("rsa")), whyAlgorithm},
		{"PS256", sign(jwt.SigningMethodPS256, testRSA, kid("rsa")), whyAlgorithm},
		{"alg none with a kid", b64(`{"alg":"none","kid":"ed"}`) + ed[strings.IndexByte(ed, '.'):], whyAlgorithm},
		{"ES256 signature in DER", unsigned + base64.RawURLEncoding.EncodeToString(derSignature), whySignature},
		{"ES256 signature of zeros", unsigned + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), whySignature},
		{"EdDSA signature of zeros", ed[:strings.LastIndexByte(ed, '.')+1] + strings.Repeat("A", 86), whySignature},
	}
}

// ownKeys bring a key along, or say where one is.
func ownKeys(t *testing.T) []hostileToken {
	t.Helper()
	evil := newEdKey()
	sign := func(key any, header map[string]any) string {
		return signJWT(t, jwt.SigningMethodEdDSA, key, header, lasting())
	}
	return []hostileToken{
		{"its own jwk", sign(evil, map[string]any{"kid": "ed", "jwk": publicJWK("ed", evil.Public())}), whySignature},
		{"its own jku", sign(evil, map[string]any{"kid": "ed", "jku": "https://evil.test/jwks"}), whySignature},
		{"its own x5u", sign(evil, map[string]any{"kid": "ed", "x5u": "https://evil.test/cert"}), whySignature},
		{"kid a URL", sign(evil, kid("https://evil.test/jwks")), whyUnknownKid},
		{"typ of Better Auth's asymmetric cookie cache", sign(testEd, map[string]any{
			"kid": "ed", "typ": "better-auth.session-cache+jwt",
		}), whyBadTyp},
		{"a cookie cache by public key", signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), jwt.MapClaims{
			"session": map[string]any{"userId": "ada"}, "user": map[string]any{"id": "ada"}, "exp": lasting()["exp"],
		}), whyBadSub},
	}
}

func TestHostileKeyTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		a := newKeyAuthenticator(t, issuer, Config{Secret: testSecret})
		for _, test := range append(keyConfusions(t), ownKeys(t)...) {
			t.Logf("%s", test.name)
			wantRefused(t, errorOf(a, test.token), test.why)
		}
		for _, asked := range issuer.asked {
			if asked != testJWKS {
				t.Errorf("fetched %s", asked)
			}
		}
	})
}

func TestNoJWKS(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Secret: testSecret})
	token := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())
	wantRefused(t, errorOf(a, token), Error{NoKey, "no key set is configured: BETTER_AUTH_URL or JWKS_URL"})
	if err := a.JWKSReady(); err != nil {
		t.Errorf("not ready without a JWKS: %v", err)
	}
}

// jwkWith returns a key of a set with changed members.
func jwkWith(jwk map[string]string, changes map[string]any) map[string]any {
	member := map[string]any{}
	for name, value := range jwk {
		member[name] = value
	}
	maps.Copy(member, changes)
	return member
}

// listedKey is a member of a set, and whether we hold it.
type listedKey struct {
	name string
	key  map[string]any
	held bool
}

func listedKeys() []listedKey {
	ed := publicJWK("k", testEd.Public())
	ec := publicJWK("k", testEC.Public())
	rsaKey := publicJWK("k", testRSA.Public())
	short := base64.RawURLEncoding.EncodeToString(new(big.Int).Lsh(big.NewInt(1), 1023).Bytes())
	return []listedKey{
		{"Ed25519", jwkWith(ed, nil), true},
		{"alg and use", jwkWith(ed, map[string]any{"alg": "EdDSA", "use": "sig"}), true},
		{"key_ops verify", jwkWith(ed, map[string]any{"key_ops": []string{"verify"}}), true},
		{"unknown members", jwkWith(ed, map[string]any{"x5u": "https://evil.test/", "iat": 1}), true},
		{"RS256", jwkWith(rsaKey, map[string]any{"alg": "RS256"}), true},
		{"ES256", jwkWith(ec, map[string]any{"alg": "ES256"}), true},
		{"no kid", jwkWith(ed, map[string]any{"kid": ""}), false},
		{"kid a number", jwkWith(ed, map[string]any{"kid": 1}), false},
		{"use enc", jwkWith(ed, map[string]any{"use": "enc"}), false},
		{"key_ops sign", jwkWith(ed, map[string]any{"key_ops": []string{"sign"}}), false},
		{"key_ops empty", jwkWith(ed, map[string]any{"key_ops": []string{}}), false},
		{"alg of another kind", jwkWith(ed, map[string]any{"alg": "ES256"}), false},
		{"RSA for PS256", jwkWith(rsaKey, map[string]any{"alg": "PS256"}), false},
		{"RSA for encryption", jwkWith(rsaKey, map[string]any{"alg": "RSA-OAEP"}), false},
		{"alg HS256 on an RSA key", jwkWith(rsaKey, map[string]any{"alg": "HS256"}), false},
		{"RSA of 1024 bits", jwkWith(rsaKey, map[string]any{"n": short}), false},
		{"RSA with e = 2", jwkWith(rsaKey, map[string]any{"e": "Ag"}), false},
		{"RSA with e = 65538", jwkWith(rsaKey, map[string]any{"e": "AQAC"}), false},
		{"RSA with e = 1", jwkWith(rsaKey, map[string]any{"e": "AQ"}), false},
		{"P-384", jwkWith(publicJWK("k", newECKey(elliptic.P384()).Public()), nil), false},
		{"not on the curve", jwkWith(ec, map[string]any{"y": ec["x"]}), false},
		{"Ed25519 too short", jwkWith(ed, map[string]any{"x": "AAAA"}), false},
		{"X25519", jwkWith(ed, map[string]any{"crv": "X25519"}), false},
		{"symmetric", map[string]any{"kid": "k", "kty": "oct", "k": "AAAA", "alg": "HS256"}, false},
		{"kty in another case", jwkWith(ed, map[string]any{"kty": "okp"}), false},
	}
}

func TestKeysThatAreLeftOut(t *testing.T) {
	t.Parallel()
	for _, test := range listedKeys() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			other := publicJWK("other", testEd2.Public())
			body, err := json.Marshal(map[string]any{"keys": []any{test.key, other}})
			if err != nil {
				t.Fatal(err)
			}
			set, err := parseKeySet(body)
			if err != nil {
				t.Fatal(err)
			}
			if held := len(set.byID) == 2; held != test.held {
				t.Errorf("held: %v, want %v", held, test.held)
			}
			if _, held := set.byID["other"]; !held {
				t.Error("the key beside it was left out too")
			}
		})
	}
}

func TestAKidThatStandsTwiceNamesNoKey(t *testing.T) {
	t.Parallel()
	keys := []any{}
	for _, key := range []crypto.Signer{testEd, testEC, testEd2} {
		keys = append(keys, publicJWK("k", key.Public()))
	}
	body, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	set, err := parseKeySet(body)
	if err != nil || len(set.byID) != 0 {
		t.Errorf("got %v, %v; want no keys", set, err)
	}
}

func TestAnswersThatAreNoSetKeepTheKeysHeld(t *testing.T) {
	t.Parallel()
	set := newKeyIssuer(map[string]crypto.Signer{"evil": testEd2}).set()
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"status 500":     text(http.StatusInternalServerError, string(set)),
		"status 404":     text(http.StatusNotFound, string(set)),
		"status 204":     text(http.StatusNoContent, ""),
		"a page":         text(http.StatusOK, "<html>"),
		"no keys member": text(http.StatusOK, `{}`),
		"keys null":      text(http.StatusOK, `{"keys":null}`),
		"keys twice":     text(http.StatusOK, `{"keys":[],"keys":[]}`),
		"cut off":        text(http.StatusOK, string(set[:len(set)-2])),
		"too large":      text(http.StatusOK, string(set)+strings.Repeat(" ", keysMaxBody)),
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.test/jwks", http.StatusFound)
		},
		"too slow": func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			_, _ = w.Write(set)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				issuer := newKeyIssuer(threeKeys())
				a := newKeyAuthenticator(t, issuer, Config{})
				synctest.Wait()
				issuer.answer(handler)
				begun := time.Now()
				unknown := signJWT(t, jwt.SigningMethodEdDSA, testEd2, kid("evil"), lasting())
				wantRefused(t, errorOf(a, unknown), whyUnknownKid)
				if waited := time.Since(begun); waited > keysTimeout {
					t.Errorf("waited %v", waited)
				}
				if err := errorOf(a, signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())); err != nil {
					t.Errorf("with the keys held: %v", err)
				}
				if issuer.fetches() != 2 || issuer.asked[1] != testJWKS {
					t.Errorf("fetched %v", issuer.asked)
				}
			})
		})
	}
}

func TestAFloodOfUnknownKidsCausesOneFetchAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		a := newKeyAuthenticator(t, issuer, Config{})
		synctest.Wait()
		flood := func() {
			var waits sync.WaitGroup
			for i := range 500 {
				token := signJWT(t, jwt.SigningMethodEdDSA, testEd2, kid(fmt.Sprint("kid", i)), lasting())
				waits.Go(func() { _ = errorOf(a, token) })
			}
			waits.Wait()
		}
		flood()
		flood()
		if n := issuer.fetches(); n != 2 {
			t.Fatalf("%d fetches after two floods, want the first and one more", n)
		}
		<-time.After(keysUnknownEvery - time.Nanosecond)
		flood()
		if n := issuer.fetches(); n != 2 {
			t.Fatalf("%d fetches within the minute, want 2", n)
		}
		<-time.After(time.Nanosecond)
		flood()
		if n := issuer.fetches(); n != 3 {
			t.Fatalf("%d fetches after a minute, want 3", n)
		}
	})
}

func TestAFetchAnswersWhoAskedForIt(t *testing.T) {
	t.Parallel()
	source, err := newKeySource(Config{JWKSURL: testJWKS, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ended := source.ask()
	source.begin() // By the clock, at the same moment.
	if len(source.wake) != 0 {
		t.Error("the fetch will be made a second time")
	}
	source.end()
	<-ended
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(map[string]crypto.Signer{"old": testEd})
		a := newKeyAuthenticator(t, issuer, Config{})
		old := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("old"), lasting())
		if err := errorOf(a, old); err != nil {
			t.Fatalf("old key: %v", err)
		}
		issuer.replace(map[string]crypto.Signer{"old": testEd, "new": testEd2})
		rotated := signJWT(t, jwt.SigningMethodEdDSA, testEd2, kid("new"), lasting())
		if err := errorOf(a, rotated); err != nil {
			t.Fatalf("new key, at its first token: %v", err)
		}
		issuer.replace(map[string]crypto.Signer{"new": testEd2})
		<-time.After(10*time.Minute - time.Second)
		wantRefused(t, errorOf(a, old), whyUnknownKid)
		if err := errorOf(a, rotated); err != nil {
			t.Fatalf("new key, alone: %v", err)
		}
	})
}

func TestAKeyReplacedUnderItsKidStopsItsTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(map[string]crypto.Signer{"k": testEd})
		a := newKeyAuthenticator(t, issuer, Config{})
		old := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("k"), lasting())
		if err := errorOf(a, old); err != nil {
			t.Fatal(err)
		}
		issuer.replace(map[string]crypto.Signer{"k": testEd2})
		<-time.After(10*time.Minute - time.Second)
		wantRefused(t, errorOf(a, old), whySignature)
	})
}

func TestAllKeysTakenOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		a := newKeyAuthenticator(t, issuer, Config{})
		synctest.Wait()
		if err := a.JWKSReady(); err != nil {
			t.Fatal(err)
		}
		issuer.replace(nil)
		<-time.After(10*time.Minute - time.Second)
		wantRefused(t, errorOf(a, signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())), whyUnknownKid)
		if a.JWKSReady() == nil {
			t.Error("ready without a key")
		}
	})
}

func TestAnOutageServesTheKeysHeldAndEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(map[string]crypto.Signer{"ed": testEd, "gone": testEC})
		a := newKeyAuthenticator(t, issuer, Config{})
		synctest.Wait()
		issuer.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		issuer.replace(map[string]crypto.Signer{"ed": testEd})
		<-time.After(24 * time.Hour)
		for kidName, key := range map[string]crypto.Signer{"ed": testEd, "gone": testEC} {
			method := keyMethod(key.Public())
			if err := errorOf(a, signJWT(t, method, key, kid(kidName), lasting())); err != nil {
				t.Errorf("after a day without its source, %s: %v", kidName, err)
			}
		}
		if err := a.JWKSReady(); err != nil {
			t.Error(err)
		}
		issuer.answer(nil)
		<-time.After(keysRetry + time.Second)
		gone := signJWT(t, jwt.SigningMethodES256, testEC, kid("gone"), lasting())
		wantRefused(t, errorOf(a, gone), whyUnknownKid)
	})
}

func TestStartsWithoutItsJWKSAndRecovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		issuer.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		log, logged := logger(slog.LevelInfo)
		a := newKeyAuthenticator(t, issuer, Config{Secret: testSecret, Logger: log})
		token := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())
		var refused *Error
		if err := errorOf(a, token); err == nil || errors.As(err, &refused) {
			t.Errorf("without a key nobody knows, but: %v", err)
		}
		if err := a.JWKSReady(); err != nil {
			t.Errorf("not ready, though the secret verifies: %v", err)
		}
		if err := errorOf(a, signJWT(t, jwt.SigningMethodHS256, testSecret, nil, lasting())); err != nil {
			t.Errorf("HS256 meanwhile: %v", err)
		}
		<-time.After(time.Hour)
		issuer.answer(nil)
		<-time.After(keysRetry + time.Second)
		if err := errorOf(a, token); err != nil {
			t.Errorf("after the JWKS came: %v", err)
		}
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") ||
			!strings.Contains(
				lines[0],
				"answered with 503 until it is",
			) || !strings.Contains(lines[1], "serves keys again") {
			t.Errorf("logged %q, want a line when it is away and one when it is back", lines)
		}
	})
}

// Where the keys are may have a password in it, or a key.
func TestAFetchThatFailsTellsNothingOfItsURL(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"127.0.0.1:1", "nowhere.invalid"} {
		source, err := newKeySource(Config{JWKSURL: "http://private:private@" + where + "/private?private=private"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := source.download(t.Context()); err == nil || strings.Contains(err.Error(), "private") {
			t.Errorf("%s: %v", where, err)
		}
	}
}

func TestHowTheKeysAreIsLoggedAndMeasured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		registry := prometheus.NewRegistry()
		log, logged := logger(slog.LevelInfo)
		a := newKeyAuthenticator(t, issuer, Config{Logger: log, Metrics: registry})
		begun := float64(time.Now().UnixNano()) / 1e9
		away := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
		for _, step := range []struct {
			handler http.HandlerFunc
			keys    map[string]crypto.Signer
			held    float64
			log     string
		}{
			{away, nil, 3, `level=WARN msg="jwks not reachable, serving the keys held"`},
			{away, nil, 3, ""},
			{nil, nil, 0, `level=WARN msg="jwks has no key that can be used: tokens signed with one are refused"`},
			{nil, nil, 0, ""},
			{nil, threeKeys(), 3, `level=INFO msg="jwks serves keys again" keys=3`},
			{nil, threeKeys(), 3, ""},
		} {
			synctest.Wait()
			issuer.answer(step.handler)
			issuer.replace(step.keys)
			<-time.After(keysEvery + time.Second)
			synctest.Wait()
			got := counted(t, registry)
			if got["taskledger_auth_jwks_keys{}"] != step.held || (a.JWKSReady() == nil) != (step.held > 0) {
				t.Errorf("held %v, want %v; ready: %v", got, step.held, a.JWKSReady())
			}
			success := got["taskledger_auth_jwks_last_success_timestamp_seconds{}"]
			if (success == begun) != (step.handler != nil) || success < begun {
				t.Errorf("last success at %v, begun at %v", success, begun)
			}
			line, rest, _ := strings.Cut(logged.String(), "\n")
			if !strings.HasPrefix(line, step.log) || (line == "") != (step.log == "") || rest != "" {
				t.Errorf("logged %s, want %s", logged, step.log)
			}
			logged.Reset()
		}
	})
}

func TestTheFirstTokenWaitsForTheFirstFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		set := issuer.set()
		issuer.answer(func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(time.Second)
			_, _ = w.Write(set)
		})
		a := newKeyAuthenticator(t, issuer, Config{})
		synctest.Wait()
		if err := errorOf(a, signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())); err != nil {
			t.Error(err)
		}
		if n := issuer.fetches(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestACallerThatLeavesDoesNotEndTheFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issuer := newKeyIssuer(threeKeys())
		set := issuer.set()
		issuer.answer(func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(2 * time.Second)
			_, _ = w.Write(set)
		})
		a := newKeyAuthenticator(t, issuer, Config{})
		synctest.Wait()
		token := signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := a.Authenticate(withBearer(token).WithContext(ctx))
		var refused *Error
		if err == nil || errors.As(err, &refused) {
			t.Errorf("got %v, want the end of the context", err)
		}
		if err := errorOf(a, token); err != nil || issuer.fetches() != 1 {
			t.Errorf("the next: %v, %d fetches", err, issuer.fetches())
		}
	})
}

func TestJWKSURLThatCanNeverWork(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"jwks", "/api/auth/jwks", "file:///etc/keys", "https://", "http://a b/", "ftp://a/"} {
		if _, err := New(t.Context(), Config{JWKSURL: bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestKeysOverHTTP is the one test with a real server: nothing of the client is replaced.
func TestKeysOverHTTP(t *testing.T) {
	t.Parallel()
	issuer := newKeyIssuer(threeKeys())
	a := newAuthenticator(t, Config{JWKSURL: serve(t, issuer.set) + "/api/auth/jwks"})
	if err := errorOf(a, signJWT(t, jwt.SigningMethodEdDSA, testEd, kid("ed"), lasting())); err != nil {
		t.Error(err)
	}
}

func BenchmarkAuthenticateEdDSA(b *testing.B) {
	a := newAuthenticator(b, Config{JWKSURL: serve(b, newKeyIssuer(threeKeys()).set)})
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, lasting())
	token.Header["kid"] = "ed"
	signed, err := token.SignedString(testEd)
	if err != nil {
		b.Fatal(err)
	}
	r := withBearer(signed)
	for name, forget := range map[string]func(){"verified before": func() {}, "first time": a.verified.Purge} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				forget()
				if _, err := a.Authenticate(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
