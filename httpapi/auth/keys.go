package auth

// The public keys of a JWK Set (RFC 7517), fetched from the one configured URL: by the clock, and once more when a
// token names a key that is not held. Nothing that a token says is ever fetched.
//
// jwkset reads the keys; its HTTP client is not used, because it makes requests for unknown keys queue behind its rate
// limit, reads answers of any size, and drops a whole set for one key it cannot read.

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// keysEvery is how often the set is fetched. A key taken out must stop working within 10 minutes: this leaves
	// room for a fetch that fails and is repeated after keysRetry.
	keysEvery = 4 * time.Minute
	keysRetry = 30 * time.Second

	// keysFirstRetry is the pause after the first failure while no key is held at all; it doubles up to keysRetry.
	keysFirstRetry = time.Second

	// keysUnknownEvery bounds the fetches that strangers can cause by naming keys that do not exist.
	keysUnknownEvery = time.Minute

	// keysTimeout bounds a fetch from the first byte to the last: a frontend gives up after 10 seconds.
	keysTimeout = 5 * time.Second

	// keysMaxBody bounds the set, in bytes. A key is some 500.
	keysMaxBody = 256 << 10

	// keysMinRSA is what RFC 7518, 3.3 demands, in bits.
	keysMinRSA = 2048
)

// verificationKey is bound to one algorithm (RFC 8725, 3.1): what the token says it is for does not count.
type verificationKey struct {
	method jwt.SigningMethod
	key    any
}

// keySet is one answer of the source. It is never changed: while it is held, tokens verified under it stay verified.
type keySet struct {
	byID   map[string]verificationKey
	digest [sha256.Size]byte // of the answer
}

// keySource holds the keys of one URL.
type keySource struct {
	url    string
	client *http.Client
	now    func() time.Time
	logger *slog.Logger

	held   atomic.Pointer[keySet] // nil until the first answer
	wake   chan struct{}          // asks run for a fetch at once
	stop   context.CancelFunc
	done   chan struct{} // closed when run has ended
	health keyHealth     // as told to the log; of run alone

	heldKeys, lastSuccess prometheus.Gauge

	mu       sync.Mutex
	fetching chan struct{} // closed when the fetch asked for or running has ended; nil when there is none
	asked    time.Time     // when an unknown key last caused a fetch
}

// keyHealth is how well a source serves.
type keyHealth int

const (
	keysUsable keyHealth = iota
	keysNone             // it answers, but with no key that we can use
	keysAway             // it does not answer
)

// newKeySource checks the URL and does no I/O.
func newKeySource(cfg Config) (*keySource, error) {
	u, err := url.Parse(cfg.JWKSURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("JWKS URL: want an absolute http or https URL")
	}
	s := &keySource{
		url: cfg.JWKSURL, now: cfg.Now, logger: cfg.Logger,
		client: &http.Client{Timeout: keysTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // The configured URL, and no other that it may name.
		}},
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
		heldKeys: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "taskledger_auth_jwks_keys",
			Help: "Keys of the JWKS that are held.",
		}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "taskledger_auth_jwks_last_success_timestamp_seconds",
			Help: "When the JWKS was last fetched, in seconds since 1970; 0 is never.",
		}),
	}
	register(cfg.Metrics, s.heldKeys, s.lastSuccess)
	return s, nil
}

// CountKeys fetches a JWKS once, and tells how many keys it has that tokens can be verified by.
func CountKeys(ctx context.Context, url string) (int, error) {
	s, err := newKeySource(Config{JWKSURL: url})
	if err != nil {
		return 0, err
	}
	defer s.client.CloseIdleConnections()
	set, err := s.download(ctx)
	if err != nil {
		return 0, err
	}
	return len(set.byID), nil
}

// start fetches in the background until close, or until ctx ends.
func (s *keySource) start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	s.begin() // Before the first token can come, so that it waits for this fetch and causes none.
	go s.run(ctx)
}

func (s *keySource) close() {
	s.stop()
	<-s.done
}

func (s *keySource) run(ctx context.Context) {
	defer close(s.done)
	for failures := 0; ; {
		err := s.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		s.report(err)
		failures++
		if err == nil {
			failures = 0
		}
		timer := time.NewTimer(s.pause(failures))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.wake:
		}
		timer.Stop()
	}
}

// report tells of a change only: an outage is one line, not one a try.
func (s *keySource) report(err error) {
	was, is := s.health, keysUsable
	switch {
	case err != nil:
		is = keysAway
	case s.count() == 0:
		is = keysNone
	}
	s.health = is
	switch {
	case is == was:
	case is == keysAway && s.held.Load() == nil:
		s.logger.Warn("jwks not reachable: tokens signed with its keys are answered with 503 until it is", "err", err)
	case is == keysAway:
		s.logger.Warn("jwks not reachable, serving the keys held", "err", err, "keys", s.count())
	case is == keysNone:
		s.logger.Warn("jwks has no key that can be used: tokens signed with one are refused")
	default:
		s.logger.Info("jwks serves keys again", "keys", s.count())
	}
}

func (s *keySource) pause(failures int) time.Duration {
	switch {
	case failures == 0:
		return keysEvery
	case s.held.Load() != nil:
		return keysRetry
	default:
		return min(keysFirstRetry<<min(failures-1, 10), keysRetry)
	}
}

func (s *keySource) count() int {
	set := s.held.Load()
	if set == nil {
		return 0
	}
	return len(set.byID)
}

// find returns the key that kid names, with the set it is from. For a kid that is not held it waits for the fetch under
// way, or for one that it may cause; a flood of them waits for the same one, or is refused at once.
func (s *keySource) find(ctx context.Context, kid string) (verificationKey, *keySet, error) {
	if key, set, ok := s.lookup(kid); ok {
		return key, set, nil
	}
	fetching := s.ask()
	if fetching == nil {
		return verificationKey{}, nil, s.unknown()
	}
	select {
	case <-fetching:
	case <-s.done:
	case <-ctx.Done():
		return verificationKey{}, nil, fmt.Errorf("wait for jwks: %w", ctx.Err())
	}
	if key, set, ok := s.lookup(kid); ok {
		return key, set, nil
	}
	return verificationKey{}, nil, s.unknown()
}

// unknown is the answer to a kid that is not held. Where no key was ever held, nobody knows: the source is away.
func (s *keySource) unknown() error {
	if s.held.Load() == nil {
		return errors.New("jwks: no keys held yet")
	}
	return refuse(UnknownKey, "no key of that kid in the key set")
}

func (s *keySource) lookup(kid string) (verificationKey, *keySet, bool) {
	set := s.held.Load()
	if set == nil {
		return verificationKey{}, nil, false
	}
	key, ok := set.byID[kid]
	return key, set, ok
}

// ask returns the end of the fetch under way or of a new one; nil when the last minute has had one for a stranger.
func (s *keySource) ask() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching != nil {
		return s.fetching
	}
	now := s.now()
	if !s.asked.IsZero() && now.Before(s.asked.Add(keysUnknownEvery)) {
		return nil
	}
	s.asked = now
	s.fetching = make(chan struct{})
	s.wake <- struct{}{} // Never blocks: who fills it sets fetching, and begin empties it.
	return s.fetching
}

func (s *keySource) refresh(ctx context.Context) error {
	s.begin()
	defer s.end()
	set, err := s.download(ctx)
	if err != nil {
		return err
	}
	// The same answer keeps the same set, and with it the tokens verified under it.
	if held := s.held.Load(); held == nil || held.digest != set.digest {
		s.held.Store(set)
	}
	s.heldKeys.Set(float64(len(set.byID)))
	s.lastSuccess.SetToCurrentTime()
	return nil
}

func (s *keySource) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.wake: // This fetch is the one asked for, whatever woke us.
	default:
	}
	if s.fetching == nil {
		s.fetching = make(chan struct{})
	}
}

func (s *keySource) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.fetching)
	s.fetching = nil
}

func (s *keySource) download(ctx context.Context) (*keySet, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch jwks: %w", err)
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	answer, err := s.client.Do(request)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the URL, which may have an API key in it
	}
	if err != nil {
		return nil, fmt.Errorf("fetch jwks: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch jwks: status %d", answer.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, keysMaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read jwks: %w", err)
	}
	if len(body) > keysMaxBody {
		return nil, fmt.Errorf("read jwks: over %d bytes", keysMaxBody)
	}
	return parseKeySet(body)
}

// parseKeySet leaves out what we cannot use (RFC 7517, 5): private use, other algorithms, no kid. A kid that stands
// twice names no key. An empty set is an answer: all keys were taken out.
func parseKeySet(body []byte) (*keySet, error) {
	var document struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if !decodeTokenObject(body, &document) || document.Keys == nil {
		return nil, errors.New("read jwks: not a JWK Set")
	}
	set := &keySet{byID: make(map[string]verificationKey, len(document.Keys)), digest: sha256.Sum256(body)}
	var seen []string
	for _, member := range document.Keys {
		kid, key, ok := parseKey(member)
		if !ok {
			continue
		}
		if slices.Contains(seen, kid) {
			delete(set.byID, kid)
			continue
		}
		seen = append(seen, kid)
		set.byID[kid] = key
	}
	return set, nil
}

// jsonWebKey names what we use of a key: no x5u or x5c, and nothing private.
type jsonWebKey struct {
	Kty    string   `json:"kty"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Alg    string   `json:"alg"`
	Kid    string   `json:"kid"`
	Crv    string   `json:"crv"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
	N      string   `json:"n"`
	E      string   `json:"e"`
}

func parseKey(member jsontext.Value) (string, verificationKey, bool) {
	var k jsonWebKey
	if !decodeTokenObject(member, &k) || k.Kid == "" {
		return "", verificationKey{}, false
	}
	if k.Use != "" && k.Use != "sig" { // RFC 7517, 4.2; Better Auth sends none.
		return "", verificationKey{}, false
	}
	if k.KeyOps != nil && !slices.Contains(k.KeyOps, "verify") { // RFC 7517, 4.3
		return "", verificationKey{}, false
	}
	parsed, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{
		KTY: jwkset.KTY(k.Kty), CRV: jwkset.CRV(k.Crv), X: k.X, Y: k.Y, N: k.N, E: k.E,
	}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return "", verificationKey{}, false
	}
	method := keyMethod(parsed.Key())
	if method == nil || (k.Alg != "" && k.Alg != method.Alg()) {
		return "", verificationKey{}, false
	}
	return k.Kid, verificationKey{method: method, key: parsed.Key()}, true
}

// keyMethod returns the one algorithm that a key is for, or nil.
func keyMethod(key any) jwt.SigningMethod {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return jwt.SigningMethodEdDSA
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return jwt.SigningMethodES256
		}
	case *rsa.PublicKey:
		if key.N.BitLen() >= keysMinRSA && key.E >= 3 && key.E%2 == 1 {
			return jwt.SigningMethodRS256
		}
	}
	return nil
}
