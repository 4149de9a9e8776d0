package overlay

import (
	"encoding/binary"
	"hash/crc64"

	"github.com/vbatts/tar-split/tar/storage"
)

// updateCRC is crc64.Update with tar-split's polynomial, x⁶⁴ + x⁴ + x³ + x + 1, about four times as
// fast as the library. Multiplying by x⁶⁴ modulo this polynomial takes a few shifts, because only
// its low bits are set. Two words are added at a time: by x¹²⁸ = x⁸ + x⁶ + x² + 1 and by x⁶⁴. In the
// reflected form of CRC-64/ISO a multiplication by x is a shift to the right.
func updateCRC(crc uint64, p []byte) uint64 {
	crc = ^crc
	for ; len(p) >= 16; p = p[16:] {
		a := crc ^ binary.LittleEndian.Uint64(p)
		b := binary.LittleEndian.Uint64(p[8:])
		over := a<<62 ^ a<<58 ^ a<<56 ^ b<<63 ^ b<<61 ^ b<<60 // beyond x⁶³
		crc = a ^ a>>2 ^ a>>6 ^ a>>8 ^ b ^ b>>1 ^ b>>3 ^ b>>4 ^ over ^ over>>1 ^ over>>3 ^ over>>4
	}
	return crc64.Update(^crc, storage.CRCTable, p)
}
