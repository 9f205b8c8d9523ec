package events

import "testing"

func TestRecentIsBounded(t *testing.T) {
	t.Parallel()
	r := NewRecent[int](1500)
	for i := range 10 {
		r.Put(string(rune('a'+i)), i, 300)
	}
	if len(r.users) != 3 || r.order.Len() != 3 || r.Bytes() != 3*429 {
		t.Fatalf("%d bytes of %d users", r.Bytes(), len(r.users))
	}
	if v, ok := r.Get("h"); !ok || v != 7 {
		t.Fatalf("got %d, %t", v, ok)
	}
	r.Put("k", 10, 300)
	if _, ok := r.Get("h"); !ok {
		t.Error("the one used last is gone")
	}
	if _, ok := r.Get("i"); ok {
		t.Error("the one used least is there")
	}
	r.Put("k", 11, 500)
	if v, _ := r.Get("k"); v != 11 || r.Bytes() != 2*429+629 {
		t.Errorf("replaced: %d, %d bytes", v, r.Bytes())
	}
	r.Drop("k")
	if _, ok := r.Get("k"); ok || r.Bytes() != 2*429 {
		t.Errorf("dropped: %t, %d bytes", !ok, r.Bytes())
	}
	r.Put("large", 1, 5000)
	if _, ok := r.Get("large"); !ok || len(r.users) != 1 {
		t.Errorf("one over the bound is not the only one kept: %d users", len(r.users))
	}
	r.Put("a", 1, 1)
	if _, ok := r.Get("large"); ok || len(r.users) != 1 {
		t.Errorf("one over the bound is kept beside another: %d bytes", r.Bytes())
	}
	r.Clear()
	if _, ok := r.Get("a"); ok || r.Bytes() != 0 {
		t.Errorf("cleared: %d bytes", r.Bytes())
	}
}
