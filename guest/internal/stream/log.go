// Package stream keeps what the application writes until the host has read it.
package stream

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

const (
	// MaxLine bounds the JSON text of one record, in bytes: a longer line is cut into several.
	MaxLine = 256 << 10
	// MaxKept bounds the records kept for a reader that is away, in bytes of JSON.
	MaxKept = 4 << 20

	envelope = 160 // room for the other members of a record
)

// Log is a bounded sequence of records. Records are numbered from 1 without gaps.
type Log struct {
	mu      sync.Mutex
	now     func() time.Time
	records [][]byte // encoded, oldest first; the first has the number first
	first   int64
	size    int
	changed chan struct{} // closed at the next record
}

// NewLog makes an empty log that takes its times from now.
func NewLog(now func() time.Time) *Log {
	return &Log{now: now, first: 1, changed: make(chan struct{})}
}

type lineRecord struct {
	Seq    int64           `json:"seq"`
	Time   int64           `json:"t"`
	Stream string          `json:"stream"`
	Line   json.RawMessage `json:"line"`
}

type exitRecord struct {
	Seq      int64 `json:"seq"`
	Time     int64 `json:"t"`
	ExitCode int   `json:"exit_code"`
}

type droppedRecord struct {
	Seq     int64 `json:"seq"`
	Time    int64 `json:"t"`
	Dropped int64 `json:"dropped"`
}

// Line adds one line without its newline. Bytes that are not UTF-8 become U+FFFD.
func (l *Log) Line(stream string, line []byte) {
	text := quote(line)
	if len(text) > MaxLine-envelope && len(line) > 1 {
		middle := boundary(line)
		l.Line(stream, line[:middle])
		l.Line(stream, line[middle:])
		return
	}
	l.add(func(seq, at int64) any { return lineRecord{Seq: seq, Time: at, Stream: stream, Line: text} })
}

// Exit adds the end of the application.
func (l *Log) Exit(code int) {
	l.add(func(seq, at int64) any { return exitRecord{Seq: seq, Time: at, ExitCode: code} })
}

func (l *Log) add(record func(seq, at int64) any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	encoded := encode(record(l.first+int64(len(l.records)), l.now().UnixNano()))
	l.records = append(l.records, encoded)
	l.size += len(encoded)
	for l.size > MaxKept {
		l.size -= len(l.records[0])
		l.records[0] = nil
		l.records = l.records[1:]
		l.first++
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// After returns the records that follow number seq, each a JSON object and a newline, and the number to go on from.
// Records that were dropped are one record that says how many. Nothing new: it returns a channel that is closed then.
func (l *Log) After(seq int64) (records [][]byte, next int64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.first + int64(len(l.records)) - 1
	if seq >= last {
		return nil, seq, l.changed
	}
	if missed := l.first - 1 - seq; missed > 0 {
		seq = l.first - 1
		records = append(records, encode(droppedRecord{Seq: seq, Time: l.now().UnixNano(), Dropped: missed}))
	}
	records = append(records, l.records[seq+1-l.first:]...)
	return records, last, l.changed
}

var beat = []byte(`{"beat":true}` + "\n")

// Follow writes every record after number seq, and a beat whenever nothing was written for that long, until the
// context ends or write fails.
func (l *Log) Follow(ctx context.Context, seq int64, silence time.Duration, write func([]byte) error) error {
	timer := time.NewTimer(silence)
	defer timer.Stop()
	for {
		records, next, changed := l.After(seq)
		for _, record := range records {
			if err := write(record); err != nil {
				return err
			}
		}
		seq = next
		if len(records) > 0 {
			timer.Reset(silence)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
			if err := write(beat); err != nil {
				return err
			}
			timer.Reset(silence)
		}
	}
}
