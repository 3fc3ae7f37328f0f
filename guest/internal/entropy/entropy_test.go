package entropy

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestTheSeedIsCreditedInFull(t *testing.T) {
	seed := bytes.Repeat([]byte{7}, 64)
	packed := pool(seed)
	if binary.NativeEndian.Uint32(packed) != 512 || binary.NativeEndian.Uint32(packed[4:]) != 64 || !bytes.Equal(packed[8:], seed) {
		t.Fatalf("%v", packed)
	}
}
