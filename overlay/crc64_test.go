package overlay

import (
	"hash/crc64"
	"testing"

	"github.com/vbatts/tar-split/tar/storage"

	"github.com/micarun/mica/internal/testseed"
)

// updateCRC has the same result as the library for any content, in any pieces.
func TestUpdateCRC(t *testing.T) {
	r := testseed.New(t)
	for range 2000 {
		data := make([]byte, r.IntN(300))
		for n := range data {
			data[n] = byte(r.Uint32())
		}
		at := r.IntN(len(data) + 1)
		got := updateCRC(updateCRC(0, data[:at]), data[at:])
		if want := crc64.Checksum(data, storage.CRCTable); got != want {
			t.Fatalf("%x in pieces of %d and %d bytes: %x, want %x", data, at, len(data)-at, got, want)
		}
	}
}

func BenchmarkUpdateCRC(b *testing.B) {
	data := make([]byte, bufferSize)
	b.SetBytes(bufferSize)
	for b.Loop() {
		updateCRC(0, data)
	}
}
