//go:build unix

package postgres

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// account is the user that PostgreSQL, which refuses to run as root, runs as. nil is ourselves.
type account struct {
	name     string
	uid, gid uint32
}

// accountFor keeps to the owner of a cluster that exists: PostgreSQL insists on it.
func accountFor(data string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	info, err := os.Stat(data)
	if err == nil {
		return ownerOf(info)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, name := range []string{"postgres", "nobody", "daemon"} {
		if u, err := user.Lookup(name); err == nil {
			return newAccount(u)
		}
	}
	return nil, errors.New(
		"PostgreSQL refuses to run as root, and there is no other user to run it as: useradd --system postgres",
	)
}

func ownerOf(info fs.FileInfo) (*account, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 {
		return nil, errors.New(
			"PostgreSQL refuses to run as root, and root owns its " + info.Name() + " directory: " +
				"chown it to another user",
		)
	}
	u, err := user.LookupId(strconv.Itoa(int(stat.Uid)))
	if err != nil {
		return nil, err
	}
	return newAccount(u)
}

func newAccount(u *user.User) (*account, error) {
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	return &account{name: u.Username, uid: uint32(uid), gid: uint32(gid)}, errors.Join(uidErr, gidErr)
}

func (a *account) apply(cmd *exec.Cmd) {
	if a != nil {
		attributes(cmd).Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
}

func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}
