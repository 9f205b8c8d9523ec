package testdb

// The housekeeping, which tests look at from outside.
var (
	Sweep   = sweep
	MakeDir = makeDir
)
