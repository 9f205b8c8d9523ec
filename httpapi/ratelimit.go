package httpapi

import (
	"fmt"
	"math"
	"net/http"
	"strconv"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// maxBuckets bounds the users whose buckets are kept; a user who comes back after being forgotten has a full one.
const maxBuckets = 1 << 16

// rateLimits has a token bucket a user.
type rateLimits struct {
	rps     float64
	burst   int
	buckets *lru.Cache[string, *rate.Limiter]
	policy  string
}

func newRateLimits(rps float64, burst int) *rateLimits {
	if rps <= 0 || burst <= 0 {
		return &rateLimits{}
	}
	buckets, err := lru.New[string, *rate.Limiter](maxBuckets)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &rateLimits{
		rps:     rps,
		burst:   burst,
		buckets: buckets,
		policy:  fmt.Sprintf(`"user";q=%d;w=%d`, burst, int(math.Min(math.Ceil(float64(burst)/rps), math.MaxInt32))),
	}
}

// take takes a token of the user's bucket, and tells in the header what is left (draft-ietf-httpapi-ratelimit-headers).
func (l *rateLimits) take(header http.Header, user string) error {
	if l.buckets == nil {
		return nil
	}
	bucket, ok := l.buckets.Get(user)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(l.rps), l.burst)
		if known, found, _ := l.buckets.PeekOrAdd(user, bucket); found {
			bucket = known
		}
	}
	allowed := bucket.Allow()
	left := bucket.Tokens()
	header.Set("RateLimit-Policy", l.policy)
	header.Set("RateLimit", fmt.Sprintf(`"user";r=%d;t=%d`, int(math.Max(0, left)), l.untilFull(left)))
	if allowed {
		return nil
	}
	wait := math.Min((1-left)/l.rps, math.MaxInt32)
	return newProblem(http.StatusTooManyRequests, "rate_limited", "too many requests; slow down").
		with("Retry-After", strconv.Itoa(max(1, int(math.Ceil(wait)))))
}

// untilFull is the number of seconds until the bucket is full again.
func (l *rateLimits) untilFull(left float64) int {
	return int(math.Min(math.Ceil((float64(l.burst)-left)/l.rps), math.MaxInt32))
}
