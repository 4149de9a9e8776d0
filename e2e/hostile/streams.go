package hostile

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// huge is the size of a file that is much larger than its blob.
const huge = 10 << 30

// streams attack decompression.
func streams() []Image {
	begin := item{kind: tar.TypeReg, name: "zeros", size: huge}.bytes()
	return []Image{
		{Name: "gzip-10gb", build: layered(func() packed { return packed{zeroMember(begin, 600), unhashed()} })},
		{Name: "gzip-10gb-members", build: layered(func() packed { return (&packer{}).add(begin, 1).add(make([]byte, 16<<20), 600).whole() })},
		{Name: "gzip-4gb-of-text", build: layered(func() packed {
			return (&packer{}).add(begin, 1).add([]byte(strings.Repeat("text of a file\n", 1<<20)), 300).whole()
		})},
		{Name: "gzip-10gb-behind-a-link", Quick: true, build: layered(func() packed {
			links := append(item{kind: tar.TypeDir, name: "d/"}.bytes(), item{kind: tar.TypeSymlink, name: "l", link: "d"}.bytes()...)
			return packed{zeroMember(append(links, item{kind: tar.TypeReg, name: "l/zeros", size: huge}.bytes()...), 600), unhashed()}
		})},
		{Name: "gzip-1gb-replaced", build: layered(replacedZeros)},
		{Name: "gzip-after-the-end", build: layered(func() packed { return (&packer{}).add(make([]byte, 16<<20), 600).whole() })},
		{Name: "gzip-empty-members", Quick: true, build: layered(emptyMembers)},
		{Name: "gzip-empty-blocks", Quick: true, build: layered(emptyBlocks)},
		{Name: "gzip-long-name", Says: "gzip: invalid header: invalid argument", build: layered(longGzipName)},
		{Name: "zstd-10gb", build: layered(func() packed { return packed{zstdZeros(begin, 128<<20, 600*16), unhashed()} })},
		{Name: "zstd-300gb", build: layered(func() packed { return packed{zstdZeros(begin, 8<<20, 18_000*16), unhashed()} })},
		{Name: "zstd-window-512mb", build: layered(func() packed { return packed{zstdZeros(begin, 512<<20, 600*16), unhashed()} })},
		{Name: "zstd-window-2gb", build: layered(func() packed { return packed{zstdZeros(begin, 2<<30, 600*16), unhashed()} })},
		{Name: "zstd-empty-frames", build: layered(emptyFrames)},
		{Name: "zstd-skipped-frames", build: layered(skippedFrames)},
		{Name: "zstd-windows-in-parallel", build: windows(append(times(10, zeroLayer{mebibytes: 144, window: 128 << 20, padding: 600 << 10}),
			times(40, zeroLayer{mebibytes: 16, window: 8 << 20})...)...)},
		{Name: "zstd-windows-beside-a-large-one", build: windows(append(times(1, zeroLayer{mebibytes: 1 << 10, window: 128 << 20, padding: 9500 << 10}),
			times(60, zeroLayer{mebibytes: 16, window: 8 << 20})...)...)},
		{Name: "zstd-windows-of-tiny-layers", build: windows(times(450, zeroLayer{mebibytes: 1, window: 128 << 20, padding: 16 << 10})...)},
		{Name: "zstd-windows-of-small-layers", build: windows(times(120, zeroLayer{mebibytes: 16, window: 128 << 20, padding: 80 << 10})...)},
	}
}

// replacedZeros makes a file of 1.2 GB of zeros, and another of the same name.
func replacedZeros() packed {
	const members = 72
	p := (&packer{}).add(item{kind: tar.TypeReg, name: "zeros", size: members * 16 << 20}.bytes(), 1)
	return p.add(make([]byte, 16<<20), members).add(item{kind: tar.TypeReg, name: "zeros"}.bytes(), 1).end()
}

// emptyMembers are before, in and after a small tar.
func emptyMembers() packed {
	empty := gzipped(nil)
	p := hashed()
	p.addMember(empty, 100_000)
	p.add(item{kind: tar.TypeReg, name: "f"}.bytes(), 1)
	p.addMember(empty, 1_000_000/len(empty)*8)
	return p.end()
}

// emptyBlocks are before a small tar: blocks that contain nothing but need code tables, some with the
// fixed codes of RFC 1951 and some with codes of their own.
func emptyBlocks() packed {
	member := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, bytes.Repeat([]byte{0x02, 0x08, 0x20, 0x80, 0x00}, 7<<20/5)...)
	member = append(member, bytes.Repeat(emptyDynamicBlocks(), 2<<20/len(emptyDynamicBlocks()))...)
	member = append(member, 0x03, 0x00)           // the last block, which is empty too
	member = append(member, make([]byte, 2*4)...) // checksum and size
	p := hashed()
	p.addMember(member, 1)
	return p.add(item{kind: tar.TypeReg, name: "f"}.bytes(), 1).end()
}

// emptyDynamicBlocks returns eight blocks, which are whole bytes. In each, the end of the block and
// one distance have a code.
func emptyDynamicBlocks() []byte {
	// Type 2, no more codes than needed, and 18 lengths of the codes for the lengths. In their order,
	// 18 (a run of zeros) is the third, and 1 the last.
	block := "0" + "01" + "00000" + "00000" + "0111"
	for n := range 18 {
		if n == 2 || n == 17 {
			block += "100"
		} else {
			block += "000"
		}
	}
	block += "1" + "1111111" + "1" + "1101011" // 138 zeros, then 118: symbols 0 to 255
	block += "0" + "0"                         // symbol 256 and distance 0 have one bit
	block += "0"                               // symbol 256
	out := make([]byte, len(block))
	for n, bit := range []byte(strings.Repeat(block, 8)) {
		out[n/8] |= (bit - '0') << (n % 8)
	}
	return out
}

// longGzipName makes a header with a file name of eight megabytes.
func longGzipName() packed {
	p := hashed()
	p.add(append(item{kind: tar.TypeReg, name: "f"}.bytes(), make([]byte, 2*block)...), 1)
	plain := p.whole()
	named := append([]byte{0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255}, strings.Repeat("n", 8<<20)...)
	named = append(named, 0)
	return packed{append(named, plain.data[10:]...), plain.diffID}
}

// zstdMagic is the beginning of a frame. Decoders skip frames with the second value.
var (
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	skippable = []byte{0x50, 0x2a, 0x4d, 0x18}
)

// zstdZeros makes a frame with the window. It begins with data and continues with some MiB of
// zeros.
func zstdZeros(data []byte, window, mebibytes int) []byte {
	out := bytes.NewBuffer(zstdHeader(window))
	out.Write(zstdBlock(0, len(data), false))
	out.Write(data)
	// A block of type 1 is one byte and its number of repetitions, at most 128 KiB.
	zeros := append(zstdBlock(1, 128<<10, false), 0)
	for range mebibytes * 8 {
		out.Write(zeros)
	}
	out.Write(zstdBlock(0, 0, true))
	return out.Bytes()
}

// zstdHeader returns a frame header without checksum, dictionary and content size.
func zstdHeader(window int) []byte {
	exponent := 0
	for 1<<(10+exponent+1) <= window {
		exponent++
	}
	return append(bytes.Clone(zstdMagic), 0, byte(exponent<<3))
}

func zstdBlock(kind, size int, last bool) []byte {
	h := uint32(size<<3 | kind<<1)
	if last {
		h |= 1
	}
	return binary.LittleEndian.AppendUint32(nil, h)[:3]
}

// zstdFrame makes a frame with uncompressed data.
func zstdFrame(data []byte, window int) []byte {
	out := append(zstdHeader(window), zstdBlock(0, len(data), true)...)
	return append(out, data...)
}

func emptyFrames() packed {
	p := hashed()
	p.add(append(item{kind: tar.TypeReg, name: "f"}.bytes(), make([]byte, 2*block)...), 1)
	plain := append(item{kind: tar.TypeReg, name: "f"}.bytes(), make([]byte, 2*block)...)
	out := bytes.Repeat(zstdFrame(nil, 128<<20), 1_000_000)
	return packed{append(out, zstdFrame(plain, 1<<12)...), p.whole().diffID}
}

func skippedFrames() packed {
	plain := append(item{kind: tar.TypeReg, name: "f"}.bytes(), make([]byte, 2*block)...)
	skipped := append(bytes.Clone(skippable), 0, 0, 0, 0)
	out := append(zstdFrame(plain, 1<<12), bytes.Repeat(skipped, 1_200_000)...)
	return packed{out, hashed().add(plain, 1).whole().diffID}
}

// zeroLayer makes a zstd layer with a file of zeros that fills a window.
type zeroLayer struct {
	mebibytes, window int
	padding           int // bytes of the blob that decoders skip
}

func times(n int, l zeroLayer) []zeroLayer {
	list := make([]zeroLayer, n)
	for i := range list {
		list[i] = l
	}
	return list
}

// windows makes layers that each need a window at the same time. No two are the same blob.
func windows(list ...zeroLayer) func(*parts) error {
	return func(p *parts) error {
		for i, l := range list {
			if err := p.layer(l.pack(fmt.Sprintf("zeros%d", i))); err != nil {
				return err
			}
		}
		return nil
	}
}

func (l zeroLayer) pack(name string) packed {
	begin := item{kind: tar.TypeReg, name: name, size: int64(l.mebibytes) << 20}.bytes()
	end := make([]byte, 2*block)
	sum := sha256.New()
	sum.Write(begin)
	zeros := make([]byte, 1<<20)
	for range l.mebibytes {
		sum.Write(zeros)
	}
	sum.Write(end)
	out := append(zstdZeros(begin, l.window, l.mebibytes), zstdFrame(end, 1<<10)...)
	out = append(out, skippable...)
	out = binary.LittleEndian.AppendUint32(out, uint32(l.padding))
	return packed{append(out, make([]byte, l.padding)...), digest.NewDigest(digest.SHA256, sum)}
}
