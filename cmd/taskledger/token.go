package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"taskledger/httpapi/auth"
)

type tokenCmd struct {
	User string        `required:"" placeholder:"ID" help:"Who the token is for: the user id, as it will be the token's sub."`
	TTL  time.Duration `name:"ttl" default:"24h" help:"How long the token is valid, such as 30m or 24h."`
}

// Run prints the token alone, so that it can stand in a command: curl -H "Authorization: Bearer $(taskledger token
// --user me)" …
func (c *tokenCmd) Run(cfg *settings, stdout io.Writer) error {
	if !auth.ValidUserID(c.User) {
		return fmt.Errorf("--user must have 1 to %d bytes of UTF-8, none of them a control character", auth.MaxUserID)
	}
	if c.TTL < time.Second {
		return errors.New("--ttl must be a second or more")
	}
	secret, err := cfg.secret()
	if err != nil {
		return err
	}
	if secret == nil {
		return errors.New("BETTER_AUTH_SECRET must be set to sign a token: the keys of a key set are not ours")
	}
	token, err := cfg.mintToken(secret, c.User, c.TTL, time.Now())
	if err != nil {
		return fmt.Errorf("sign a token: %w", err)
	}
	_, err = fmt.Fprintln(stdout, token)
	return err
}
