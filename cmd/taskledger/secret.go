package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"taskledger/httpapi/auth"
)

// secret returns the key of HS256 tokens and of Better Auth's signed sessions; nil when tokens are only verified by a
// key set.
func (s *settings) secret() ([]byte, error) {
	if s.BetterAuthSecret != nil {
		return []byte(*s.BetterAuthSecret), nil
	}
	if !s.embedded() {
		return nil, nil
	}
	dir, err := s.dataDir()
	if err != nil {
		return nil, err
	}
	secret, err := developmentSecret(dir)
	if err != nil {
		return nil, fmt.Errorf("development secret: %w", err)
	}
	return secret, nil
}

// developmentSecret reads the secret kept in dir and makes it at the first time.
func developmentSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, "secret")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := keepSecret(dir, path); err != nil {
			return nil, err
		}
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	secret := strings.TrimSpace(string(content))
	if len(secret) < auth.MinSecret {
		return nil, fmt.Errorf("%s must have %d bytes or more: delete it to get a new one", path, auth.MinSecret)
	}
	return []byte(secret), nil
}

// keepSecret writes the file under another name first and then links it, so that of two processes the second finds the
// whole file of the first. The directory is also the database's: others must be able to pass.
func keepSecret(dir, path string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, "secret-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.WriteString(rand.Text() + rand.Text() + "\n")
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// mintToken signs a token that this server takes for a login of user.
func (s *settings) mintToken(secret []byte, user string, ttl time.Duration, now time.Time) (string, error) {
	return auth.SignToken(secret, user, s.JWTIssuer, s.JWTAudience, now, ttl)
}
