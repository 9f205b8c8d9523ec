package events

import (
	"bytes"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/collate"
	"golang.org/x/text/language"
)

// maxTitleKey bounds a title's key in bytes, so that it always fits an index entry. Only titles of many hundreds of
// characters' worth of rare ligatures are longer; they are ordered by their beginning.
const maxTitleKey = 1024

// collator holds tables and buffers, and serves one goroutine at a time.
type collator struct {
	*collate.Collator
	buf collate.Buffer
}

var collators = sync.Pool{New: func() any { return &collator{Collator: collate.New(language.Und)} }}

// TitleKey is what titles are ordered by, byte by byte: the root collation of the Unicode Collation Algorithm (UTS #10)
// over the case-folded title. It is the same on every server, whatever its locale.
func TitleKey(title string) []byte {
	c := collators.Get().(*collator)
	defer collators.Put(c)
	c.buf.Reset()
	key := c.KeyFromString(&c.buf, FoldCase(title))
	return bytes.Clone(key[:min(len(key), maxTitleKey)])
}

// FoldCase is the full case folding of Unicode (chapter 3.13): texts that differ in case only become equal, in every
// script.
func FoldCase(s string) string {
	if isASCII(s) {
		return strings.ToLower(s)
	}
	return strings.Map(foldCherokee, cases.Fold().String(s))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// foldCherokee folds the small letters of Cherokee, which golang.org/x/text leaves as they are: in this one script
// Unicode's CaseFolding.txt folds to the capitals, which are older.
func foldCherokee(r rune) rune {
	switch {
	case 0xAB70 <= r && r <= 0xABBF:
		return r - 0xAB70 + 0x13A0
	case 0x13F8 <= r && r <= 0x13FD:
		return r - 8
	}
	return r
}

// SearchText is what a search looks in: title and description, case-folded. Between them stands a noncharacter, so that
// nothing is found across the two.
func SearchText(title string, description *string) string {
	if description == nil {
		return FoldCase(title)
	}
	return FoldCase(title) + "\uFFFF" + FoldCase(*description)
}
