package command

import (
	"crypto/sha256"
	"fmt"

	"github.com/go-json-experiment/json"
)

// fingerprint tells requests apart: the same command under the same condition has the same, whatever its spelling in JSON was. It is
// stored, so it never changes: testdata has frozen samples.
func fingerprint(cmd Command, match Match) ([]byte, error) {
	data, err := json.Marshal(struct {
		Name    string
		Command Command
		Match   Match
	}{cmd.name(), cmd, match}, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	sum := sha256.Sum256(data)
	return sum[:], nil
}
