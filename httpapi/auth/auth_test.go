package auth

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// hostileToken is refused, and for this.
type hostileToken struct {
	name, token string
	why         Error
}

// What more than one credential is refused for.
var (
	whyNothing        = Error{NoCredentials, "neither an Authorization header nor a cookie of Better Auth"}
	whyTooLong        = Error{TooLong, overLong}
	whyShape          = Error{Malformed, "neither a JWT nor a signed session"}
	whyScheme         = Error{Malformed, "not the Bearer scheme"}
	whyEmpty          = Error{Malformed, "empty bearer"}
	whyBase64url      = Error{Malformed, "a part is not base64url"}
	whyUnsigned       = Error{Malformed, "no signature"}
	whyBadHeader      = Error{Malformed, "header is not a strict JSON object"}
	whyBadAlg         = Error{Malformed, "alg is not a string"}
	whyBadKid         = Error{Malformed, "kid is not a string"}
	whyBadClaims      = Error{Malformed, "claims are not a strict JSON object"}
	whyNoExp          = Error{Malformed, "no exp"}
	whyBadExp         = Error{Malformed, "exp is not a date"}
	whyBadStart       = Error{Malformed, "nbf or iat is not a date"}
	whyBadIssuer      = Error{Malformed, "iss is not a string"}
	whyBadAudience    = Error{Malformed, "aud is neither a string nor strings"}
	whyBadEscape      = Error{Malformed, "bad percent-encoding"}
	whyBadToken       = Error{Malformed, "no token of visible ASCII before the dot"}
	whyBase64         = Error{Malformed, "no base64 behind the dot"}
	whyCrit           = Error{Unsupported, "header has crit"}
	whyAlgorithm      = Error{BadAlgorithm, "not HS256, EdDSA, ES256 or RS256"}
	whyOtherKey       = Error{BadAlgorithm, "key is for another algorithm"}
	whyNoSecret       = Error{NoKey, noSecret}
	whyUnknownKid     = Error{UnknownKey, "no key of that kid in the key set"}
	whySecret         = Error{BadSignature, otherSecret}
	whySignature      = Error{BadSignature, "not signed with the key that it names"}
	whyExpired        = Error{Expired, "exp has passed"}
	whySessionExpired = Error{Expired, "expiresAt has passed"}
	whyEarly          = Error{NotYetValid, "nbf or iat lies ahead: do the clocks agree?"}
	whyIssuer         = Error{WrongIssuer, "iss is not JWT_ISSUER"}
	whyAudience       = Error{WrongAudience, "aud does not name JWT_AUDIENCE"}
	whyBadSub         = Error{NotALogin, "sub is not a string"}
	whyBadTyp         = Error{NotALogin, "typ is not JWT"}
	whyBadUser        = Error{NotALogin, badUser}
	whyNoCache        = Error{NotALogin, "the cookie holds no cookie cache"}
	whyNoSession      = Error{NoSession, "signed out, or never there"}
	whyNoTables       = Error{NoSessionTables, noTables}
	whyCrossSite      = Error{CrossSite, "a write by cookie needs Sec-Fetch-Site: same-origin, or an Origin that is " +
		"this server's own, that of BETTER_AUTH_URL or one of CORS_ORIGINS"}
)

func wantRefused(t *testing.T, err error, want Error) {
	t.Helper()
	refused, ok := errors.AsType[*Error](err)
	if !ok || *refused != want {
		t.Fatalf("got %v, want %v", err, &want)
	}
	if !slices.Contains(reasons, refused.Reason) {
		t.Errorf("%s is not one of the fixed set", refused.Reason)
	}
}

func TestWhatIsLeftOfACredential(t *testing.T) {
	t.Parallel()
	caller := Caller{Expires: testNow}
	for _, test := range []struct{ after, left time.Duration }{
		{-time.Minute, time.Minute},
		{-time.Nanosecond, time.Nanosecond},
		{0, 30 * time.Second},
		{10 * time.Second, 20 * time.Second},
		{30 * time.Second, 0},
	} {
		if left := caller.Left(testNow.Add(test.after)); left != test.left {
			t.Errorf("%v after the end: %v left, want %v", test.after, left, test.left)
		}
	}
}
