package auth

import (
	"testing"

	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }
