package events

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTitleKeyIsAlphabetical(t *testing.T) {
	t.Parallel()
	want := []string{
		"-x",
		"9",
		"a b",
		"apfel",
		"Äpfel",
		"ärger",
		"Ärmel",
		"Banana",
		"cherry",
		"Zebra",
		"Ωmega",
		"жаба",
		"Жук",
		"日本",
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, func(a, b string) int { return bytes.Compare(TitleKey(a), TitleKey(b)) })
	if !slices.Equal(got, want) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func TestTitleKeyIgnoresCase(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{
		{"apple", "APPLE"}, {"ärger", "ÄRGER"}, {"ωμέγα", "ΩΜΈΓΑ"}, {"жук", "ЖУК"}, {"straße", "STRASSE"},
		{"\uab70\uabbf", "\u13a0\u13ef"}, {"\u13f8", "\u13f0"},
	} {
		if !bytes.Equal(TitleKey(pair[0]), TitleKey(pair[1])) {
			t.Errorf("%q and %q are ordered differently", pair[0], pair[1])
		}
	}
}

// What is folded by itself, because it is ASCII, is what Unicode makes of it.
func TestASCIIIsFoldedLikeTheRest(t *testing.T) {
	t.Parallel()
	for r := range rune(utf8.RuneSelf) {
		if got, _, _ := strings.Cut(FoldCase(string(r)+"é"), "é"); got != FoldCase(string(r)) {
			t.Errorf("%q is folded to %q, and before an é to %q", r, FoldCase(string(r)), got)
		}
	}
}

func TestTitleKeyFitsAnIndex(t *testing.T) {
	t.Parallel()
	for _, r := range []string{"a", "ﷺ", "😀", "\u0344", "각"} {
		if n := len(TitleKey(strings.Repeat(r, 100))); n > maxTitleKey || n == 0 {
			t.Errorf("100 × %q has a key of %d bytes", r, n)
		}
	}
}

func TestSearchTextJoinsNothing(t *testing.T) {
	t.Parallel()
	s := SearchText("Buy MILK", text("Two Litres"))
	if !strings.Contains(s, FoldCase("mIlK")) || !strings.Contains(s, FoldCase("LITRES")) {
		t.Fatalf("%q does not have its words", s)
	}
	if strings.Contains(s, "milktwo") || strings.Contains(s, "milk two") {
		t.Fatalf("%q joins title and description", s)
	}
}
