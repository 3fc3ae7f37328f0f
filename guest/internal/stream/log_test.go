package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func at(seconds int64) func() time.Time { return func() time.Time { return time.Unix(seconds, 0) } }

type record struct {
	Seq      int64  `json:"seq"`
	Time     int64  `json:"t"`
	Stream   string `json:"stream"`
	Line     string `json:"line"`
	ExitCode *int   `json:"exit_code"`
	Dropped  int64  `json:"dropped"`
	Beat     bool   `json:"beat"`
}

func decode(t *testing.T, records [][]byte) []record {
	t.Helper()
	var decoded []record
	for _, text := range records {
		if len(text) > MaxLine || !bytes.HasSuffix(text, newline) {
			t.Fatalf("record of %d bytes", len(text))
		}
		var one record
		if err := json.Unmarshal(text, &one); err != nil {
			t.Fatal(err)
		}
		decoded = append(decoded, one)
	}
	return decoded
}

func TestRecordsAreNumberedFromOneAndReadAfterANumber(t *testing.T) {
	log := NewLog(at(7))
	log.Line("stdout", []byte("a <b> & c"))
	log.Line("stderr", []byte("e"))
	log.Exit(3)
	records, next, _ := log.After(1)
	got := decode(t, records)
	if len(got) != 2 || got[0].Seq != 2 || got[0].Stream != "stderr" || got[0].Time != 7e9 ||
		*got[1].ExitCode != 3 || next != 3 {
		t.Fatalf("%+v, next %d", got, next)
	}
	if records, _, _ := log.After(0); !strings.Contains(string(records[0]), `"a <b> & c"`) {
		t.Fatalf("%s", records[0])
	}
	if records, next, _ := log.After(3); records != nil || next != 3 {
		t.Fatalf("%s, next %d", records, next)
	}
}

func TestTheOldestRecordsAreDroppedAndTheirNumberIsSaid(t *testing.T) {
	log := NewLog(at(0))
	line := bytes.Repeat([]byte("x"), 100_000)
	for range 100 {
		log.Line("stdout", line)
	}
	records, next, _ := log.After(10)
	got := decode(t, records)
	kept := int64(len(got) - 1)
	if got[0].Dropped == 0 || got[0].Dropped+kept != 90 || got[0].Seq != 10+got[0].Dropped ||
		got[1].Seq != got[0].Seq+1 || next != 100 {
		t.Fatalf("dropped %+v, kept %d, next %d", got[0], kept, next)
	}
	if kept*100_000 < MaxKept*9/10 {
		t.Fatalf("kept only %d", kept)
	}
}

func TestLinesComeOutAsTheyWentIn(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		log := NewLog(at(0))
		var text strings.Builder
		for range random.IntN(7) { // at most what is kept, escapes included
			text.WriteString(strings.Repeat("ü\x01a"[:1+random.IntN(4)], random.IntN(70_000)))
			if random.IntN(3) == 0 {
				text.WriteByte('\n')
			}
		}
		log.Copy("stdout", strings.NewReader(text.String()))
		records, _, _ := log.After(0)
		var out strings.Builder
		for _, one := range decode(t, records) {
			out.WriteString(one.Line)
		}
		wanted := strings.ToValidUTF8(strings.ReplaceAll(text.String(), "\n", ""), "")
		if got := strings.ReplaceAll(out.String(), "\uFFFD", ""); got != wanted {
			t.Fatalf("%d bytes became %d", len(wanted), len(got))
		}
	}
}

func TestALineIsWhatIsBetweenNewlines(t *testing.T) {
	long := strings.Repeat("é", MaxLine) // two bytes each: cut into several, and at no place in a character
	for text, wanted := range map[string][]string{
		"":                     nil,
		"\n":                   {""},
		"a\n\nb":               {"a", "", "b"},
		"\xff\n":               {"\uFFFD"},
		long[:readSize] + "\n": {long[:readSize]},
	} {
		log := NewLog(at(0))
		log.Copy("stdout", strings.NewReader(text))
		records, _, _ := log.After(0)
		got := decode(t, records)
		if len(got) != len(wanted) {
			t.Fatalf("%.20q: %d lines", text, len(got))
		}
		for i, one := range got {
			if one.Line != wanted[i] {
				t.Fatalf("%.20q: line %d is %.20q", text, i, one.Line)
			}
		}
	}
	log := NewLog(at(0))
	log.Copy("stdout", strings.NewReader(long+"\nnext\n"))
	records, _, _ := log.After(0)
	got := decode(t, records)
	var joined string
	for _, one := range got[:len(got)-1] {
		joined += one.Line
	}
	if joined != long || got[len(got)-1].Line != "next" {
		t.Fatalf("%d lines, %d bytes of %d", len(got), len(joined), len(long))
	}
}

func TestFollowWritesWhatComesAndABeatInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := NewLog(time.Now)
		written := make(chan []byte, 9)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- log.Follow(ctx, 0, 5*time.Second, func(text []byte) error {
				written <- text
				return nil
			})
		}()
		time.Sleep(4 * time.Second)
		log.Line("stdout", []byte("a"))
		time.Sleep(4 * time.Second)
		if len(written) != 1 {
			t.Fatalf("%d records after 8 s", len(written))
		}
		time.Sleep(2 * time.Second)
		if got := decode(t, [][]byte{<-written, <-written}); got[0].Line != "a" || !got[1].Beat {
			t.Fatalf("%+v", got)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

func TestFollowEndsWhenTheReaderIsGone(t *testing.T) {
	log := NewLog(at(0))
	log.Line("stdout", []byte("a"))
	gone := errors.New("gone")
	if err := log.Follow(t.Context(), 0, time.Hour, func([]byte) error { return gone }); err != gone {
		t.Fatal(err)
	}
}
