package auth

// JSON Web Tokens, checked as RFC 8725 (best current practices) asks. golang-jwt does the cryptography; its parser is
// not used, because it reads headers and claims leniently: duplicate members, wrong case, an exp that is a string, an
// unknown crit.

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// tokenLeeway is for clocks that differ: RFC 7519, 4.1.4 and 4.1.5 allow "some small leeway".
	tokenLeeway = 30 * time.Second

	// maxDate is the last second of the year 9999, the last that RFC 3339 can write.
	maxDate = 253402300799

	// tokensKept bounds the cache of verified tokens: some 300 bytes each, so 6 MB.
	tokensKept = 20_000
)

// verifiedToken is what is known of a token whose signature and claims are good.
type verifiedToken struct {
	user    string
	expires time.Time
	kind    kind    // kindJWT: sub names the user; kindCache: session and user do
	keys    *keySet // the set it was verified under; nil for the secret
}

func (t verifiedToken) caller() Caller {
	return Caller{UserID: t.user, Expires: t.expires, kind: t.kind}
}

// verifiedTokens remembers tokens by their SHA-256, so that the cache holds nothing one could log in with.
type verifiedTokens = lru.Cache[[sha256.Size]byte, verifiedToken]

func newVerifiedTokens() (*verifiedTokens, error) {
	return lru.New[[sha256.Size]byte, verifiedToken](tokensKept)
}

// verify checks a JWT of at most maxToken bytes. Only a token that passed every check is remembered; its end is
// compared again at each use, and so is the set of its key: with a key, the tokens under it are gone.
func (a *Authenticator) verify(ctx context.Context, token string) (verifiedToken, error) {
	id := sha256.Sum256([]byte(token))
	if known, ok := a.verified.Get(id); ok && (known.keys == nil || known.keys == a.keys.held.Load()) {
		return a.unexpired(known)
	}
	verified, err := a.verifyAnew(ctx, token)
	if err != nil {
		return verifiedToken{}, err
	}
	a.verified.Add(id, verified)
	return verified, nil
}

func (a *Authenticator) verifyAnew(ctx context.Context, token string) (verifiedToken, error) {
	parts, err := splitToken(token)
	if err != nil {
		return verifiedToken{}, err
	}
	header, err := parseTokenHeader(parts.header)
	if err != nil {
		return verifiedToken{}, err
	}
	key, keys, err := a.tokenKey(ctx, header)
	if err != nil {
		return verifiedToken{}, err
	}
	if key.method.Verify(parts.signed, parts.signature, key.key) != nil {
		return verifiedToken{}, wrongSignature(keys)
	}
	return a.judgeClaims(parts.claims, keys)
}

func wrongSignature(keys *keySet) error {
	if keys == nil {
		return refuse(BadSignature, otherSecret)
	}
	return refuse(BadSignature, "not signed with the key that it names")
}

func (a *Authenticator) unexpired(t verifiedToken) (verifiedToken, error) {
	if !a.now().Before(t.expires.Add(tokenLeeway)) { // RFC 7519, 4.1.4: "on or after".
		return verifiedToken{}, refuse(Expired, "exp has passed")
	}
	return t, nil
}

// tokenParts is a JWT in the compact serialisation (RFC 7515, 7.1), decoded.
type tokenParts struct {
	header, claims, signature []byte
	signed                    string // header and claims as they were signed
}

func splitToken(token string) (tokenParts, error) {
	var (
		p                         tokenParts
		errHeader, errClaims, err error
	)
	encodedHeader, rest, _ := strings.Cut(token, ".")
	encodedClaims, encodedSignature, _ := strings.Cut(rest, ".")
	p.header, errHeader = decodeTokenPart(encodedHeader)
	p.claims, errClaims = decodeTokenPart(encodedClaims)
	p.signature, err = decodeTokenPart(encodedSignature)
	if err := errors.Join(errHeader, errClaims, err); err != nil {
		return tokenParts{}, refuse(Malformed, "a part is not base64url")
	}
	if len(p.signature) == 0 { // RFC 7519, 6: an unsecured JWT. RFC 8725, 3.2 wants them refused.
		return tokenParts{}, refuse(Malformed, "no signature")
	}
	p.signed = token[:len(encodedHeader)+1+len(encodedClaims)]
	return p, nil
}

// decodeTokenPart is strict (RFC 7515, 2: no padding, no line breaks, no white space; RFC 4648, 3.5: zero pad bits), so
// that a token has one spelling.
func decodeTokenPart(part string) ([]byte, error) {
	if strings.ContainsAny(part, "\r\n") { // encoding/base64 skips them even when strict.
		return nil, base64.CorruptInputError(0)
	}
	return base64.RawURLEncoding.Strict().DecodeString(part)
}

// tokenHeader is a JOSE header. What it does not name is ignored, as RFC 7515, 4 asks: jwk, jku, x5u and x5c among it,
// for a key that comes with the token proves nothing (RFC 8725, 3.5 and 3.10).
type tokenHeader struct {
	Alg  jsontext.Value `json:"alg"`
	Typ  jsontext.Value `json:"typ"`
	Kid  jsontext.Value `json:"kid"`
	Crit jsontext.Value `json:"crit"`
	B64  jsontext.Value `json:"b64"`
	Cty  jsontext.Value `json:"cty"`
	Zip  jsontext.Value `json:"zip"`
	Enc  jsontext.Value `json:"enc"`
}

// joseHeader is what of a header decides: which key, used how.
type joseHeader struct{ alg, kid string }

func parseTokenHeader(raw []byte) (joseHeader, error) {
	var h tokenHeader
	if !decodeTokenObject(raw, &h) { // RFC 8725, 3.7 and RFC 7515, 4: UTF-8, unique names.
		return joseHeader{}, refuse(Malformed, "header is not a strict JSON object")
	}
	if h.Crit != nil { // RFC 7515, 4.1.11: extensions we do not understand; we understand none.
		return joseHeader{}, refuse(Unsupported, "header has crit")
	}
	if h.B64 != nil { // RFC 7797, 3: only with crit.
		return joseHeader{}, refuse(Unsupported, "header has b64")
	}
	if h.Zip != nil { // RFC 8725, 3.6: no compression before encryption; never on a signature.
		return joseHeader{}, refuse(Unsupported, "header has zip")
	}
	if h.Enc != nil { // RFC 7519, 5: an encrypted token.
		return joseHeader{}, refuse(Unsupported, "header has enc")
	}
	if h.Cty != nil { // RFC 7519, 5.2: only nested tokens have one.
		return joseHeader{}, refuse(Unsupported, "header has cty")
	}
	if !tokenTypeIsJWT(h.Typ) {
		return joseHeader{}, refuse(NotALogin, "typ is not JWT")
	}
	return keyHeader(h)
}

// tokenTypeIsJWT holds RFC 8725, 3.11: explicit typing. Access tokens (at+jwt), logout tokens and the like were made
// for somebody else. A typ is a media type and so case-insensitive (RFC 7515, 4.1.9); Better Auth sends none.
func tokenTypeIsJWT(typ jsontext.Value) bool {
	if typ == nil {
		return true
	}
	name, ok := tokenString(typ)
	return ok && strings.EqualFold(name, "JWT")
}

func keyHeader(h tokenHeader) (joseHeader, error) {
	alg, ok := tokenString(h.Alg)
	if !ok { // RFC 7515, 4.1.1: must be present, a string, case-sensitive.
		return joseHeader{}, refuse(Malformed, "alg is not a string")
	}
	if h.Kid == nil {
		return joseHeader{alg: alg}, nil
	}
	kid, ok := tokenString(h.Kid)
	if !ok || kid == "" { // RFC 7515, 4.1.4: a string.
		return joseHeader{}, refuse(Malformed, "kid is not a string")
	}
	return joseHeader{alg: alg, kid: kid}, nil
}

// tokenKey chooses the key, and with it the algorithm (RFC 8725, 3.1): the secret is for HS256 and for nothing else, a
// public key for the one algorithm of its kind. The set is nil for the secret.
func (a *Authenticator) tokenKey(ctx context.Context, h joseHeader) (verificationKey, *keySet, error) {
	switch h.alg {
	case jwt.SigningMethodHS256.Alg():
		if len(a.secret) == 0 {
			return verificationKey{}, nil, refuse(NoKey, noSecret)
		}
		return verificationKey{method: jwt.SigningMethodHS256, key: a.secret}, nil, nil
	case jwt.SigningMethodEdDSA.Alg(), jwt.SigningMethodES256.Alg(), jwt.SigningMethodRS256.Alg():
		return a.publicKey(ctx, h)
	default:
		return verificationKey{}, nil, refuse(BadAlgorithm, "not HS256, EdDSA, ES256 or RS256")
	}
}

func (a *Authenticator) publicKey(ctx context.Context, h joseHeader) (verificationKey, *keySet, error) {
	if a.keys == nil {
		return verificationKey{}, nil, refuse(NoKey, "no key set is configured: BETTER_AUTH_URL or JWKS_URL")
	}
	if h.kid == "" { // Trying all keys would let any of them speak for any other.
		return verificationKey{}, nil, refuse(UnknownKey, "names no key")
	}
	key, set, err := a.keys.find(ctx, h.kid)
	if err != nil {
		return verificationKey{}, nil, err
	}
	if key.method.Alg() != h.alg {
		return verificationKey{}, nil, refuse(BadAlgorithm, "key is for another algorithm")
	}
	return key, set, nil
}

// tokenClaims keeps every claim as it was written: what it must be is checked one by one.
type tokenClaims struct {
	Sub     jsontext.Value `json:"sub"`
	Exp     jsontext.Value `json:"exp"`
	Nbf     jsontext.Value `json:"nbf"`
	Iat     jsontext.Value `json:"iat"`
	Iss     jsontext.Value `json:"iss"`
	Aud     jsontext.Value `json:"aud"`
	Session jsontext.Value `json:"session"`
	User    jsontext.Value `json:"user"`
}

// judgeClaims checks the claims of a token whose signature is good. That somebody signed it is no login: Better Auth's
// e-mail verification tokens are signed with the same secret (RFC 8725, 2.8 and 3.12: one kind of token for another).
func (a *Authenticator) judgeClaims(raw []byte, keys *keySet) (verifiedToken, error) {
	var c tokenClaims
	if !decodeTokenObject(raw, &c) { // RFC 7519, 4: unique names; RFC 8725, 3.7: UTF-8.
		return verifiedToken{}, refuse(Malformed, "claims are not a strict JSON object")
	}
	t, err := a.tokenUser(c, keys)
	if err != nil {
		return verifiedToken{}, err
	}
	if !ValidUserID(t.user) {
		return verifiedToken{}, refuse(NotALogin, badUser)
	}
	if t.expires, err = a.tokenTimes(c); err != nil {
		return verifiedToken{}, err
	}
	return a.unexpired(t)
}

// tokenUser tells the two kinds of login apart. A cookie cache has no sub, and is signed with the secret only.
func (a *Authenticator) tokenUser(c tokenClaims, keys *keySet) (verifiedToken, error) {
	if c.Sub == nil && c.Session != nil && c.User != nil && keys == nil {
		return cachedUser(c)
	}
	sub, ok := tokenString(c.Sub)
	if !ok {
		return verifiedToken{}, refuse(NotALogin, "sub is not a string")
	}
	if err := a.tokenParties(c); err != nil {
		return verifiedToken{}, err
	}
	return verifiedToken{user: sub, kind: kindJWT, keys: keys}, nil
}

// cachedUser reads Better Auth's cookie cache, strategy jwt. It names no iss and no aud, so they are not compared.
func cachedUser(c tokenClaims) (verifiedToken, error) {
	var (
		session struct {
			UserID jsontext.Value `json:"userId"`
		}
		user struct {
			ID jsontext.Value `json:"id"`
		}
	)
	if !decodeTokenObject(c.Session, &session) || !decodeTokenObject(c.User, &user) {
		return verifiedToken{}, refuse(NotALogin, "session or user is not an object")
	}
	owner, okOwner := tokenString(session.UserID)
	id, okID := tokenString(user.ID)
	if !okOwner || !okID || owner != id {
		return verifiedToken{}, refuse(NotALogin, "session and user name no one user")
	}
	return verifiedToken{user: id, kind: kindCache}, nil
}

// tokenParties holds RFC 8725, 3.8 and 3.9: a token of another issuer, or for another audience, is not for us.
func (a *Authenticator) tokenParties(c tokenClaims) error {
	issuer, ok := tokenString(c.Iss)
	if !ok && c.Iss != nil { // RFC 7519, 4.1.1
		return refuse(Malformed, "iss is not a string")
	}
	if a.issuer != "" && issuer != a.issuer {
		return refuse(WrongIssuer, "iss is not JWT_ISSUER")
	}
	audience, ok := tokenAudience(c.Aud)
	if !ok {
		return refuse(Malformed, "aud is neither a string nor strings")
	}
	if a.audience != "" && !slices.Contains(audience, a.audience) {
		return refuse(WrongAudience, "aud does not name JWT_AUDIENCE")
	}
	return nil
}

// tokenAudience reads both forms of RFC 7519, 4.1.3: one string, or an array of strings.
func tokenAudience(v jsontext.Value) ([]string, bool) {
	if v == nil {
		return nil, true
	}
	if one, ok := tokenString(v); ok {
		return []string{one}, true
	}
	var many []*string // A null in the array stays visible.
	if v.Kind() != '[' || json.Unmarshal(v, &many) != nil || slices.Contains(many, nil) {
		return nil, false
	}
	audience := make([]string, len(many))
	for i, one := range many {
		audience[i] = *one
	}
	return audience, true
}

// tokenTimes returns exp, which must be there: a token that never ends cannot be taken back. A passed exp is left to
// unexpired, so that only a token that is good otherwise is told to have expired.
func (a *Authenticator) tokenTimes(c tokenClaims) (time.Time, error) {
	if c.Exp == nil {
		return time.Time{}, refuse(Malformed, "no exp")
	}
	expires, ok := tokenDate(c.Exp)
	if !ok {
		return time.Time{}, refuse(Malformed, "exp is not a date")
	}
	latest := a.now().Add(tokenLeeway)
	for _, start := range []jsontext.Value{c.Nbf, c.Iat} {
		if start == nil {
			continue
		}
		from, ok := tokenDate(start)
		if !ok {
			return time.Time{}, refuse(Malformed, "nbf or iat is not a date")
		}
		if from.After(latest) { // RFC 7519, 4.1.5; of iat the RFC says nothing, but it cannot lie ahead.
			return time.Time{}, refuse(NotYetValid, "nbf or iat lies ahead: do the clocks agree?")
		}
	}
	return expires, nil
}

// tokenDate reads RFC 7519, 2: a JSON number of seconds since 1970, fractions allowed.
func tokenDate(v jsontext.Value) (time.Time, bool) {
	if v.Kind() != '0' {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseFloat(string(v), 64)
	if err != nil || seconds < 0 || seconds > maxDate {
		return time.Time{}, false
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*float64(time.Second))), true
}

// decodeTokenObject decodes a JSON object and nothing else into a struct. The decoder refuses duplicate names, names in
// another case, invalid UTF-8 and lone surrogates, at any depth, and anything after the object.
func decodeTokenObject(raw []byte, into any) bool {
	return jsontext.Value(raw).Kind() == '{' && json.Unmarshal(raw, into) == nil
}

func tokenString(v jsontext.Value) (string, bool) {
	if v.Kind() != '"' {
		return "", false
	}
	text, err := jsontext.AppendUnquote(nil, v)
	return string(text), err == nil
}

// ValidUserID holds what the database can store as a key and a log can print. Nothing is trimmed or folded.
func ValidUserID(id string) bool {
	return id != "" && len(id) <= MaxUserID && utf8.ValidString(id) && !strings.ContainsFunc(id, unicode.IsControl)
}

// SignToken returns a development token: HS256, with iss and aud unless they are empty.
func SignToken(secret []byte, user, issuer, audience string, now time.Time, ttl time.Duration) (string, error) {
	if len(secret) < MinSecret {
		return "", fmt.Errorf("sign token: secret of %d bytes, want at least %d", len(secret), MinSecret)
	}
	if !ValidUserID(user) {
		return "", fmt.Errorf("sign token: user id is empty, over %d bytes or has control characters", MaxUserID)
	}
	claims := jwt.MapClaims{"sub": user, "iat": now.Unix(), "exp": now.Add(ttl).Unix()}
	if issuer != "" {
		claims["iss"] = issuer
	}
	if audience != "" {
		claims["aud"] = audience
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
}
