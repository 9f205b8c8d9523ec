//go:build !linux

package httpapi

import (
	"net"
	"time"
)

// setUserTimeout does nothing where there is no such option: the system gives such a connection up later.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
