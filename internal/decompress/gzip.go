package decompress

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/gzip"
)

// maxGzipString is the maximum size of a file name or comment in a gzip header, in bytes with the
// zero at its end. It is the limit of Go's library too.
const maxGzipString = 512

// gzipReader decompresses the members of a gzip stream (RFC 1952). It accepts what Go's library
// accepts, but no reserved flags. It takes half the time, among other things because it decodes into
// the caller's buffer. Buffers of 64 KiB or more are fast.
type gzipReader struct {
	body *inflater
	sum  uint32 // of the member so far
	size uint32
	err  error
}

// newGzipReader reads the header of the first member.
func newGzipReader(in *bufio.Reader) (*gzipReader, error) {
	z := &gzipReader{body: newInflater(in)}
	return z, z.header()
}

// Read implements io.Reader. Errors are gzip.ErrHeader, gzip.ErrChecksum, flate.CorruptInputError,
// io.ErrUnexpectedEOF, and those of the input.
func (z *gzipReader) Read(p []byte) (n int, err error) {
	for z.err == nil && n < len(p) {
		k, err := z.body.Read(p[n:])
		z.sum = crc32.Update(z.sum, crc32.IEEETable, p[n:n+k])
		z.size += uint32(k)
		n += k
		if z.err = err; err == io.EOF { //nolint:errorlint // only an unwrapped io.EOF is an end
			z.err = z.next()
		}
	}
	return n, z.err
}

// next checks the end of a member and reads the header of the next one. It returns io.EOF if there
// is none.
func (z *gzipReader) next() error {
	var trailer [8]byte
	if err := z.body.full(trailer[:]); err != nil {
		return truncated(err)
	}
	if binary.LittleEndian.Uint32(trailer[:]) != z.sum || binary.LittleEndian.Uint32(trailer[4:]) != z.size {
		return gzip.ErrChecksum
	}
	return z.header()
}

// header reads the header of a member. It returns io.EOF at the end of the input.
func (z *gzipReader) header() error {
	const checksum, extra, name, comment, reserved = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 7 << 5
	z.body.reset()
	z.sum, z.size = 0, 0
	var head [10]byte
	if err := z.body.full(head[:]); err != nil {
		return err
	}
	flags := head[3]
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 {
		return gzip.ErrHeader
	}
	sum := crc32.ChecksumIEEE(head[:])
	var fields []byte
	var err error
	if flags&extra != 0 {
		fields, err = z.extra(fields)
	}
	if err == nil && flags&name != 0 {
		fields, err = z.text(fields)
	}
	if err == nil && flags&comment != 0 {
		fields, err = z.text(fields)
	}
	if err == nil && flags&checksum != 0 {
		sum = crc32.Update(sum, crc32.IEEETable, fields)
		var want [2]byte
		if err = z.body.full(want[:]); err == nil && binary.LittleEndian.Uint16(want[:]) != uint16(sum) {
			err = gzip.ErrHeader
		}
	}
	if err == nil && flags&reserved != 0 {
		err = gzip.ErrHeader
	}
	return truncated(err)
}

// extra appends the extra field to the fields read so far.
func (z *gzipReader) extra(fields []byte) ([]byte, error) {
	var size [2]byte
	if err := z.body.full(size[:]); err != nil {
		return nil, err
	}
	data := make([]byte, binary.LittleEndian.Uint16(size[:]))
	err := z.body.full(data)
	return append(append(fields, size[:]...), data...), err
}

// text appends a string that ends with a zero to the fields read so far.
func (z *gzipReader) text(fields []byte) ([]byte, error) {
	for range maxGzipString {
		var b [1]byte
		if err := z.body.full(b[:]); err != nil {
			return nil, err
		}
		fields = append(fields, b[0])
		if b[0] == 0 {
			return fields, nil
		}
	}
	return nil, gzip.ErrHeader
}
