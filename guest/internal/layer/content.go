package layer

import (
	"io"
	"syscall"
)

const (
	seekData = 3 // SEEK_DATA
	seekHole = 4 // SEEK_HOLE

	blockSize = 512 // of st_blocks, whatever the file system's is
	// maxSend is what one call sends at most (MAX_RW_COUNT).
	maxSend = 0x7ffff000
)

// fill copies the content of a file to a new one, with its holes.
func fill(to, from int, wanted *syscall.Stat_t) error {
	if wanted.Blocks*blockSize >= wanted.Size {
		return send(to, from, 0, wanted.Size)
	}
	for end := int64(0); end < wanted.Size; {
		start, err := syscall.Seek(from, end, seekData)
		if err == syscall.ENXIO {
			break // nothing but a hole is left
		} else if err != nil {
			return err
		}
		if end, err = syscall.Seek(from, start, seekHole); err != nil {
			return err
		}
		if _, err := syscall.Seek(to, start, io.SeekStart); err != nil {
			return err
		}
		if err := send(to, from, start, end); err != nil {
			return err
		}
	}
	return syscall.Ftruncate(to, wanted.Size)
}

// send copies a part of a file to where the other one's offset is. By sendfile: read and write copy twice, which is slow
// where CPUs are emulated, and copy_file_range does not cross file systems.
func send(to, from int, start, end int64) error {
	for start < end {
		sent, err := syscall.Sendfile(to, from, &start, int(min(end-start, maxSend)))
		if err != nil {
			return err
		}
		if sent == 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}
