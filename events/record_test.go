package events

import (
	"encoding/hex"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// sampleRecord is an event whose record and hash are frozen in testdata.
func sampleRecord(t *testing.T) Event {
	t.Helper()
	e := Event{
		UserID: "user \u20ac/\"1\"", Seq: 1,
		TaskID:    uuid.MustParse("0190a8f0-7a57-7000-8000-000000000001"),
		EventID:   uuid.MustParse("0190a8f0-7a57-7000-8000-000000000002"),
		CommandID: uuid.MustParse("0190a8f0-7a57-7000-8000-000000000003"),
		Actor:     "user \u20ac/\"1\"", RequestID: "req-1", RecordedAt: noon,
		Data: TaskCreated{Title: "Buy milk \u2028 <&>", Description: text("two litres\n\x01")},
	}
	if err := e.encode(); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestTheRecordIsFrozen(t *testing.T) {
	t.Parallel()
	e := sampleRecord(t)
	want, err := os.ReadFile("testdata/record")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(want), "\n")
	record := e.AppendRecord(nil)
	if string(record) != lines[0] {
		t.Errorf("the record is\n%s\nwant\n%s", record, lines[0])
	}
	first := Hash{}.Next(record)
	second := first.Next(record)
	if got := hex.EncodeToString(first[:]) + " " + hex.EncodeToString(second[:]); got != lines[1] {
		t.Errorf("the hashes are %s, want %s", got, lines[1])
	}
}

func TestTimesAreInTheirLayout(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{
		{}, noon, noon.Add(time.Microsecond), noon.Add(-time.Microsecond), noon.Add(120_030 * time.Microsecond),
		noon.Add(999_999_999), noon.In(time.FixedZone("", 3600)), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		if got, want := string(AppendTime(nil, at)), at.UTC().Format(TimeLayout); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A record is in the form of RFC 8785 whatever is in it, and is read back as it was.
func TestRecordsAreCanonical(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.Custom(func(t *rapid.T) uuid.UUID {
			return uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		})
		words := rapid.String()
		data := rapid.OneOf(
			rapid.Custom(func(t *rapid.T) Data {
				return TaskCreated{
					Title:       words.Draw(t, "title"),
					Description: rapid.Ptr(words, true).Draw(t, "description"),
				}
			}),
			rapid.Custom(func(t *rapid.T) Data { return TaskRenamed{Title: words.Draw(t, "title")} }),
			rapid.Just(Data(TaskDeleted{})),
		)
		e := Event{
			UserID: words.Draw(t, "user"), Seq: rapid.Int64Range(1, 1<<53-1).Draw(t, "seq"), TaskID: id.Draw(t, "task"),
			EventID: id.Draw(t, "event"), CommandID: id.Draw(t, "command"), Actor: words.Draw(t, "actor"),
			RequestID: words.Draw(t, "request"), RecordedAt: noon, Data: data.Draw(t, "data"),
		}
		if err := e.encode(); err != nil {
			t.Fatal(err)
		}
		record := e.AppendRecord(nil)
		canonical := jsontext.Value(record).Clone()
		if err := canonical.Canonicalize(); err != nil || string(canonical) != string(record) {
			t.Fatalf("%s is not canonical: %s, %v", record, canonical, err)
		}
		back, err := ParseRecord(record)
		if err != nil || !reflect.DeepEqual(back, e) {
			t.Fatalf("read back as %+v, %v; want %+v", back, err, e)
		}
	})
}

func TestTasksAreReadBack(t *testing.T) {
	t.Parallel()
	for _, description := range []*string{nil, text(""), text("d \u2029 \"")} {
		want := Task{
			UserID:      "u\u00e9",
			ID:          taskID,
			Version:     7,
			Title:       "a\n\U0001F95B",
			Description: description,
			Completed:   true,
			CreatedAt:   noon,
			UpdatedAt:   noon.Add(1234567000),
		}
		body := want.AppendJSON(nil)
		if got, err := ParseTask(body); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, %v", body, got, err)
		}
	}
}

// A record that is there is part of a batch: who remembers the buffer for the next one must not remember the batch.
func TestALinkKeepsNoRecord(t *testing.T) {
	t.Parallel()
	e := Event{UserID: "u", Seq: 1, Data: TaskReopened{}}
	if err := e.encode(); err != nil {
		t.Fatal(err)
	}
	made, buf := e.Link(Hash{}, nil)
	e.record = append([]byte(nil), buf...)
	there, kept := e.Link(Hash{}, buf)
	if &kept[0] != &buf[0] {
		t.Error("the record is given as the buffer")
	}
	if made != there {
		t.Error("the links differ")
	}
}
