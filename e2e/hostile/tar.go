package hostile

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// block is the block size of a tar, in bytes.
const block = 512

// packed is a compressed layer.
type packed struct {
	data   []byte
	diffID digest.Digest
}

// unhashed is the diff ID of a layer that is too large to be hashed here.
func unhashed() digest.Digest { return digest.FromString("wrong") }

// item is one entry of a tar: a header of the given type and the data after it.
type item struct {
	kind       byte // such as tar.TypeReg
	name, link string
	data       []byte
	size       int64 // size in the header, if data is nil
	mode       int64
	prefix     []byte // preceding headers: PAX records, long names
	old        []byte // replaces the header from byte 345 on: GNU's sparse map
}

// bytes returns the entry, padded to blocks.
func (i item) bytes() []byte {
	out := append([]byte(nil), i.prefix...)
	size := i.size
	if i.data != nil {
		size = int64(len(i.data))
	}
	out = append(out, header(i, size)...)
	out = append(out, i.data...)
	return append(out, make([]byte, -len(i.data)&(block-1))...)
}

// header returns one header block. It cuts a name that is too long.
func header(i item, size int64) []byte {
	h := make([]byte, block)
	copy(h[0:100], i.name)
	mode := i.mode
	if mode == 0 {
		mode = 0o755
	}
	copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00", mode, 0, 0))
	if size < 1<<33 {
		copy(h[124:], fmt.Sprintf("%011o\x00", size))
	} else {
		binary.BigEndian.PutUint64(h[128:], uint64(size))
		h[124] = 0x80
	}
	copy(h[136:], "00000000000\x00")
	h[156] = i.kind
	copy(h[157:257], i.link)
	copy(h[257:], "ustar\x0000")
	if i.kind == tar.TypeGNUSparse || i.kind == tar.TypeGNULongName || i.kind == tar.TypeGNULongLink {
		copy(h[257:], "ustar  \x00")
	}
	if i.old != nil {
		copy(h[345:], i.old)
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// long returns GNU headers for a name and a link target of any length.
func long(name, link string) []byte {
	var out []byte
	if name != "" {
		out = append(out, item{kind: tar.TypeGNULongName, name: "././@LongLink", data: append([]byte(name), 0)}.bytes()...)
	}
	if link != "" {
		out = append(out, item{kind: tar.TypeGNULongLink, name: "././@LongLink", data: append([]byte(link), 0)}.bytes()...)
	}
	return out
}

// pax returns an extended header with the records, given as alternating keys and values.
func pax(pairs ...string) []byte {
	var records []byte
	for n := 0; n < len(pairs); n += 2 {
		records = append(records, record(pairs[n], pairs[n+1])...)
	}
	return item{kind: tar.TypeXHeader, name: "PaxHeaders/0", data: records}.bytes()
}

// record returns one PAX record, which begins with its own length.
func record(key, value string) string {
	length := len(key) + len(value) + 3
	for {
		r := fmt.Sprintf("%d %s=%s\n", length, key, value)
		if len(r) == length {
			return r
		}
		length = len(r)
	}
}

// packer compresses a layer. Repeated parts are compressed only once.
type packer struct {
	out bytes.Buffer
	sum hash.Hash // nil: not hashed
}

func hashed() *packer { return &packer{sum: sha256.New()} }

// add appends data as a gzip member, the given number of times.
func (p *packer) add(data []byte, times int) *packer {
	p.addMember(gzipped(data), times)
	for range times {
		if p.sum != nil {
			p.sum.Write(data)
		}
	}
	return p
}

func (p *packer) addMember(member []byte, times int) {
	for range times {
		p.out.Write(member)
	}
}

// each appends n parts as one member.
func (p *packer) each(n int, part func(int) []byte) *packer {
	z, err := gzip.NewWriterLevel(&p.out, gzip.DefaultCompression)
	if err != nil {
		panic(err) // the level is valid
	}
	for i := range n {
		data := part(i)
		_, _ = z.Write(data) // a buffer accepts every write
		if p.sum != nil {
			p.sum.Write(data)
		}
	}
	_ = z.Close()
	return p
}

// end appends the end of the archive.
func (p *packer) end() packed {
	p.add(make([]byte, 2*block), 1)
	return p.whole()
}

// whole returns the layer, without appending the end of the archive.
func (p *packer) whole() packed {
	id := unhashed()
	if p.sum != nil {
		id = digest.NewDigest(digest.SHA256, p.sum)
	}
	return packed{p.out.Bytes(), id}
}

func gzipped(data []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is valid
	}
	_, _ = z.Write(data)
	_ = z.Close()
	return out.Bytes()
}

// zeroMember makes one gzip member that begins with data, continues with times × 16 MiB of zeros,
// and has no end.
func zeroMember(data []byte, times int) []byte {
	var out bytes.Buffer
	out.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	z, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		panic(err) // the level is valid
	}
	zeros := make([]byte, 16<<20)
	_, _ = z.Write(data)
	_, _ = z.Write(zeros)
	_ = z.Flush()
	begin := out.Len()
	_, _ = z.Write(zeros)
	_ = z.Flush()
	again := bytes.Clone(out.Bytes()[begin:])
	for range times - 2 {
		out.Write(again)
	}
	return out.Bytes()
}
