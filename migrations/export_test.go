package migrations

// What tests need to run other migrations, and to be impatient.
var (
	UpWith  = up
	Latest  = latest
	LockKey = lockKey
)
