package entropy

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestTheSeedIsCreditedInFull(t *testing.T) {
	seed := bytes.Repeat([]byte{7}, 64)
	packed := pool(seed)
	bits, size := binary.NativeEndian.Uint32(packed), binary.NativeEndian.Uint32(packed[4:])
	if bits != 512 || size != 64 || !bytes.Equal(packed[8:], seed) {
		t.Fatalf("%v", packed)
	}
}
