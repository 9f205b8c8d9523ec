package httpapi

import (
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"taskledger/command"
	"taskledger/httpapi/auth"
)

const maxKey = 255

// request is who asks for a write, and under which idempotency key (draft-ietf-httpapi-idempotency-key-header). What is
// wrong is noted.
func (in *input) request(c echo.Context, caller auth.Caller) command.Request {
	return command.Request{
		UserID:    caller.UserID,
		RequestID: c.Response().Header().Get(echo.HeaderXRequestID),
		Key:       in.key(c.Request().Header.Values("Idempotency-Key")),
	}
}

func (in *input) key(sent []string) string {
	if len(sent) == 0 {
		return ""
	}
	key := sent[0]
	if len(sent) > 1 || len(key) < 1 || len(key) > maxKey ||
		strings.ContainsFunc(key, func(r rune) bool { return r < '!' || r > '~' }) {
		in.parameter(
			"Idempotency-Key",
			"invalid_value",
			"must have 1 to "+strconv.Itoa(maxKey)+" visible ASCII characters",
		)
		return ""
	}
	return key
}
