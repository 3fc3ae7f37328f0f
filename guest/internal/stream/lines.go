package stream

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"unicode/utf8"
)

// readSize is the size of the buffer that lines are found in; a longer line is put together from several.
const readSize = 32 << 10

// Copy adds every line that comes out of from, until its end or an error. A last line without newline counts.
func (l *Log) Copy(name string, from io.Reader) {
	reader := bufio.NewReaderSize(from, readSize)
	var long []byte // the beginning of a line longer than the buffer
	isCut := false  // whether an earlier piece of this line was added already
	for {
		part, err := reader.ReadSlice('\n')
		text := part
		if len(long) > 0 {
			long = append(long, part...)
			text = long
		}
		if err == bufio.ErrBufferFull {
			long = text
			if len(part) == len(text) {
				long = append([]byte(nil), part...) // the buffer is the reader's
			}
			if len(long) >= MaxLine-envelope {
				whole := wholeCharacters(long)
				l.Line(name, long[:whole])
				long, isCut = append(long[:0], long[whole:]...), true
			}
			continue
		}
		line := bytes.TrimSuffix(text, newline)
		if len(line) > 0 || (len(text) > 0 && !isCut) {
			l.Line(name, line)
		}
		long, isCut = nil, false // a long line is rare: do not keep its memory
		if err != nil {
			return
		}
	}
}

var newline = []byte("\n")

// boundary finds a place near the middle of a text that does not cut a character.
func boundary(text []byte) int {
	middle := len(text) / 2
	for back := 0; back < utf8.UTFMax && middle-back > 0; back++ {
		if utf8.RuneStart(text[middle-back]) {
			return middle - back
		}
	}
	return middle
}

// wholeCharacters is the length of text without a character that is cut off at its end.
func wholeCharacters(text []byte) int {
	for back := 1; back < utf8.UTFMax && back < len(text); back++ {
		start := len(text) - back
		if utf8.RuneStart(text[start]) {
			if utf8.FullRune(text[start:]) {
				break
			}
			return start
		}
	}
	return len(text)
}

func quote(text []byte) json.RawMessage {
	encoded := encode(string(text))
	return json.RawMessage(encoded[:len(encoded)-1])
}

// encode writes a value as JSON and a newline, leaving <, > and & as they are.
func encode(value any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // the types above cannot fail
	}
	return buffer.Bytes()
}
