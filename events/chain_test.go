package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

type vector struct {
	Before, Record string
	Hash           Hash
}

// The vectors were made by a program in another language: testdata/chain/README.md.
func vectors(t testing.TB) (users [][]vector) {
	t.Helper()
	text, err := os.ReadFile("testdata/chain/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Users [][]vector }
	if err := json.Unmarshal(text, &file); err != nil || len(file.Users) == 0 {
		t.Fatalf("%d users, %v", len(file.Users), err)
	}
	return file.Users
}

func TestChainIsThatOfTheVectors(t *testing.T) {
	t.Parallel()
	for _, links := range vectors(t) {
		var hash Hash
		for _, v := range links {
			before, err := hex.DecodeString(v.Before)
			if err != nil {
				t.Fatal(err)
			}
			if plain := sha256.Sum256(append(before, v.Record...)); plain != v.Hash {
				t.Errorf("the vector is wrong: %x, want %s", plain, v.Hash)
			}
			e, err := ParseRecord([]byte(v.Record))
			if err != nil {
				t.Fatal(err)
			}
			if own := string(e.AppendRecord(nil)); own != v.Record {
				t.Errorf("the record is\n%s, want\n%s", own, v.Record)
			}
			if hash, _ = e.Link(hash, nil); hash != v.Hash {
				t.Errorf("the hash of seq %d is %s, want %s", e.Seq, hash, v.Hash)
			}
		}
	}
}

// audit reads an export to its end.
func audit(export string) (*Audit, error) {
	a := NewAudit(strings.NewReader(export))
	for {
		if _, err := a.Next(); err != nil {
			return a, err
		}
	}
}

func exportLines(t testing.TB) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/chain/export.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	lines = strings.SplitAfter(string(text), "\n")
	return lines[:len(lines)-1]
}

func TestAuditOfAWholeExport(t *testing.T) {
	t.Parallel()
	lines, users := exportLines(t), vectors(t)
	last := users[1][len(users[1])-1]
	a, err := audit(strings.Join(lines, ""))
	if user, seq, hash := a.Head(); !errors.Is(err, io.EOF) || a.Totals != (Totals{8, 2}) || !a.Whole() ||
		user != "böb/😀" ||
		seq != 19 ||
		hash != last.Hash {
		t.Errorf("%v: %+v, whole %t, %s %d %s", err, a.Totals, a.Whole(), user, seq, hash)
	}
	// Spelled in another way, it says the same.
	for i, line := range lines {
		var members map[string]any
		if err := json.Unmarshal([]byte(line), &members); err != nil {
			t.Fatal(err)
		}
		text, err := json.MarshalIndent(members, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		lines[i] = string(bytes.ReplaceAll(text, []byte("\n"), []byte(" "))) + "\n"
	}
	if _, err := audit(strings.Join(lines, "")); !errors.Is(err, io.EOF) {
		t.Errorf("another spelling: %v", err)
	}
	// One behind the other, without what they say of themselves: as users' own exports.
	a, err = audit(
		strings.Join(
			lines[6:],
			"",
		) + strings.Replace(
			strings.Join(lines[:6], ""),
			`"export": {   "events": 8,   "users": 2  },`,
			"",
			1,
		),
	)
	if !errors.Is(err, io.EOF) || a.Totals != (Totals{8, 2}) || a.Whole() {
		t.Errorf("users' own: %v: %+v, whole %t", err, a.Totals, a.Whole())
	}
}

// What can be done to an export is seen, and at which line.
func TestAuditOfATamperedExport(t *testing.T) {
	t.Parallel()
	replaced := func(line int, old, new string) func([]string) []string {
		return func(lines []string) []string {
			if !strings.Contains(lines[line-1], old) {
				panic(old)
			}
			lines[line-1] = strings.Replace(lines[line-1], old, new, 1)
			return lines
		}
	}
	noTotals := replaced(1, `,"export":{"events":8,"users":2}`, "")
	for name, tc := range map[string]struct {
		tamper func(lines []string) []string
		line   int64
		reason string
	}{
		"a text changed":          {replaced(1, "Buy milk", "Buy wine"), 1, "the hash"},
		"a time changed":          {replaced(2, "19:44:00", "19:44:01"), 2, "the hash"},
		"a hash changed":          {replaced(4, `"hash":"c`, `"hash":"d`), 4, "the hash"},
		"an actor changed":        {replaced(5, `"actor":"ada"`, `"actor":"eve"`), 5, "the hash"},
		"a user changed":          {replaced(6, `"user_id":"ada"`, `"user_id":"eve"`), 6, "begins with seq 6"},
		"an erasure's hash":       {replaced(7, `"data":{"hash":"8`, `"data":{"hash":"9`), 7, "the hash"},
		"a member added":          {replaced(3, `"actor"`, `"note":1,"actor"`), 3, "note"},
		"a member added in data":  {replaced(1, `"data":{`, `"data":{"a":1,`), 1, "the hash"},
		"a member twice":          {replaced(3, `"actor"`, `"seq":3,"actor"`), 3, "seq"},
		"a member of another way": {replaced(3, `"seq":3`, `"Seq":3`), 3, "Seq"},
		"a member left out":       {replaced(3, `"request_id":"r-2",`, ``), 3, "request_id"},
		"a number as a text":      {replaced(3, `"seq":3`, `"seq":"3"`), 3, "seq"},
		"a version left out":      {replaced(3, `"schema_version":1,`, ``), 3, "schema_version"},
		"a null":                  {replaced(3, `"actor":"ada"`, `"actor":null`), 3, "actor"},
		"a nil task": {
			replaced(7, `"task_id":null`, `"task_id":"00000000-0000-0000-0000-000000000000"`), 7, "task_id",
		},
		"a time of nanoseconds":  {replaced(3, "00.000000Z", "00.000000001Z"), 3, "recorded_at"},
		"a time of another zone": {replaced(3, "19:44:00.000000Z", "20:44:00.000000+01:00"), 3, "recorded_at"},
		"a hash in capitals":     {replaced(4, `"hash":"c69ff2db`, `"hash":"C69FF2DB`), 4, "hash"},
		"a short hash":           {replaced(4, `"hash":"c69ff2db`, `"hash":"`), 4, "hash"},
		"a key without a print":  {replaced(4, `"hash"`, `"idempotency_key":"k","hash"`), 4, "request_fingerprint"},
		"a key in mid-command": {replaced(3, `"hash"`,
			`"idempotency_key":"k","request_fingerprint":"`+strings.Repeat("00", 32)+`","hash"`),
			3, "not the first of its command"},
		"U+0000":                {replaced(1, "Buy milk", `Buy\u0000milk`), 1, "U+0000"},
		"half a surrogate pair": {replaced(1, "Buy milk", `Buy \ud83e milk`), 1, ""},
		"bytes that are not UTF-8": {replaced(1, "Buy milk", "Buy \xff milk"),
			1, ""},
		"an empty line":      {func(l []string) []string { return slices.Insert(l, 2, "\n") }, 3, "record"},
		"garbage":            {func([]string) []string { return []string{"\x00\x01\x02garbage\n"} }, 1, "record"},
		"an array":           {func(l []string) []string { return []string{"[" + l[0] + "]"} }, 1, "record"},
		"the first left out": {func(l []string) []string { return l[1:] }, 1, "begins with seq 2"},
		"one left out":       {func(l []string) []string { return slices.Delete(l, 2, 3) }, 3, "seq 4 follows seq 2"},
		"one twice": {
			func(l []string) []string { return slices.Insert(l, 2, l[2]) }, 4, "seq 3 follows seq 3",
		},
		"two swapped": {
			func(l []string) []string { l[2], l[3] = l[3], l[2]; return l }, 3, "seq 4 follows seq 2",
		},
		"users mixed": {
			func(l []string) []string { return slices.Insert(l, 3, l[6]) }, 5, "another user's are between",
		},
		"turned round": {func(l []string) []string { slices.Reverse(l); return l }, 1, "begins with seq 19"},
		"the end cut":  {func(l []string) []string { return l[:7] }, 8, "says that it has"},
		"a user cut":   {func(l []string) []string { return l[:6] }, 7, "says that it has"},
		"more than it says": {
			replaced(1, `"events":8,"users":2`, `"events":6,"users":1`), 9, "says that it has 6 of 1",
		},
		"cut in a line": {func(l []string) []string { l[7] = l[7][:200]; return l }, 8, "record"},
		"cut in a line, without its totals": {
			func(l []string) []string { l = noTotals(l); l[7] = l[7][:200]; return l }, 8, "record",
		},
		"an erasure before what was erased": {
			func(l []string) []string { return append([]string{l[6]}, l[:1]...)[0:2:2] }, 3, "says that it has",
		},
		"an erasure behind what was erased": {func(l []string) []string {
			return append(noTotals(l)[:6:6], strings.Replace(strings.Replace(l[6], `"seq":18`, `"seq":7`, 1),
				`"user_id":"böb/😀"`, `"user_id":"ada"`, 1))
		}, 7, "was erased at seq 7, but events before that are there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := audit(strings.Join(tc.tamper(exportLines(t)), ""))
			wrong, ok := errors.AsType[*LineError](err)
			if !ok || wrong.Line != tc.line || !strings.Contains(wrong.Error(), tc.reason) {
				t.Errorf("%v, want line %d: … %s", err, tc.line, tc.reason)
			}
		})
	}
}

// Whatever single byte is changed, the line it is in is named, or the line says the same as before.
func TestAuditOfAChangedByte(t *testing.T) {
	t.Parallel()
	whole := strings.Join(exportLines(t), "")
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		text := []byte(whole)
		at := random.IntN(len(text))
		text[at] ^= byte(1 + random.IntN(255))
		line := int64(bytes.Count([]byte(whole[:at]), []byte("\n")) + 1)
		_, err := audit(string(text))
		wrong, ok := errors.AsType[*LineError](err)
		if !ok && sameLines(whole, string(text)) {
			continue
		}
		totals := strings.Contains(fmt.Sprint(err), "says that it has")
		if !ok || wrong.Line != line && wrong.Line != line+1 && !totals {
			t.Fatalf("byte %d in line %d changed from %q to %q: %v", at, line, whole[at], text[at], err)
		}
	}
}

// sameLines tells whether two exports say the same.
func sameLines(a, b string) bool {
	for _, text := range []*string{&a, &b} {
		decoded := []any{}
		for decoder := json.NewDecoder(strings.NewReader(*text)); ; {
			var v any
			if err := decoder.Decode(&v); err != nil {
				decoded = append(decoded, fmt.Sprint(err))
				break
			}
			decoded = append(decoded, v)
		}
		*text = fmt.Sprint(decoded...)
	}
	return a == b
}
