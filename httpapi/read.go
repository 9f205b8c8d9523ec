package httpapi

import (
	"net/url"
	"strconv"

	"github.com/labstack/echo/v4"

	"taskledger/query"
)

// minVersion reads the seq that an answer must reflect; 0 is any.
func (in *input) minVersion(values url.Values) int64 {
	if !values.Has("min_version") {
		return 0
	}
	seq, err := strconv.ParseUint(values.Get("min_version"), 10, 63)
	if err != nil {
		in.parameter("min_version", "invalid_value", "must be a seq, a number from 0 on")
		return 0
	}
	return int64(seq)
}

// setHead tells the user's seq that the answer reflects, and whether newer events are held up.
func setHead(c echo.Context, head query.Head) {
	setVersion(c, head.Seq)
	if head.Stale {
		c.Response().Header().Set("X-Stale", "true")
	}
}
