package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
)

const (
	history  = 32 << 10 // bytes to which a distance may go back
	maxMatch = 258      // bytes
	wordSize = 8        // bytes of the largest load and store

	// fastRoom is the room in the output that one step of inflater.fast needs: three literals and a
	// match that is written in whole words.
	fastRoom = 3 + maxMatch + wordSize
	// fastInput is the number of input bytes that one step of inflater.fast loads.
	fastInput = 2 * wordSize
)

// inflateState is what an inflater expects next.
type inflateState int

const (
	atBlock inflateState = iota
	inStored
	inHuffman
	atEnd
)

// inflater decodes one deflate stream (RFC 1951) after another. It decodes into the buffers of its
// caller: large ones are fast.
type inflater struct {
	in  *bufio.Reader
	buf []byte // what in has buffered
	pos int    // consumed bytes of buf
	err error  // of in, for when buf is consumed

	bits  uint64 // the next count bits of the input; those above are undefined
	count uint

	state   inflateState
	final   bool
	left    int // of a stored block or of the current match
	back    int // distance of the current match
	offset  int64
	window  []byte         // the last output before the current Read
	lit     *literalTable  // of the current block: dynamicLit, or a table of RFC 1951
	dist    *distanceTable // of the current block
	lengths lengthTable

	dynamicLit  literalTable
	dynamicDist distanceTable
}

func newInflater(in *bufio.Reader) *inflater {
	return &inflater{in: in}
}

// reset begins the next stream of the input.
func (f *inflater) reset() {
	f.state, f.final, f.left, f.window = atBlock, false, 0, f.window[:0]
}

// Read returns io.EOF at the end of the deflate stream. Other errors are flate.CorruptInputError,
// io.ErrUnexpectedEOF, and those of the input.
func (f *inflater) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		switch f.state {
		case atBlock:
			err = f.block()
		case inStored:
			n, err = f.stored(p, n)
		case inHuffman:
			n, err = f.huffman(p, n)
		case atEnd:
			err = io.EOF
		}
	}
	f.remember(p[:n])
	return n, err
}

// remember keeps the last output for later matches.
func (f *inflater) remember(p []byte) {
	if len(p) >= history {
		f.window = append(f.window[:0], p[len(p)-history:]...)
		return
	}
	if over := len(f.window) + len(p) - history; over > 0 {
		f.window = f.window[:copy(f.window, f.window[over:])]
	}
	f.window = append(f.window, p...)
}

func (f *inflater) corrupt() error {
	return flate.CorruptInputError(f.offset + int64(f.pos))
}

// more reads more input. It returns false at the end of the input.
func (f *inflater) more() bool {
	if f.err != nil {
		return false
	}
	rest := len(f.buf) - f.pos
	f.offset += int64(f.pos)
	_, _ = f.in.Discard(f.pos)
	_, f.err = f.in.Peek(rest + 1)
	f.buf, _ = f.in.Peek(f.in.Buffered())
	f.pos = 0
	return len(f.buf) > rest
}

// truncated is the error of an input that ends within a stream.
func (f *inflater) truncated() error {
	if errors.Is(f.err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return f.err
}

// refill loads bits until there are at least want, at most 56, or the input ends.
func (f *inflater) refill(want uint) {
	for f.count < want && (f.pos < len(f.buf) || f.more()) {
		f.bits = f.bits&(1<<f.count-1) | uint64(f.buf[f.pos])<<f.count
		f.pos++
		f.count += 8
	}
}

// take returns the next n bits, at most 32.
func (f *inflater) take(n uint) (uint, error) {
	if f.refill(n); f.count < n {
		return 0, f.truncated()
	}
	v := uint(f.bits & (1<<n - 1))
	f.bits >>= n
	f.count -= n
	return v, nil
}

// align discards the rest of a byte of which some bits are consumed.
func (f *inflater) align() {
	f.bits >>= f.count & 7
	f.count &^= 7
}

// full reads len(p) whole bytes after align.
func (f *inflater) full(p []byte) error {
	for n := range p {
		b, err := f.take(8)
		if err != nil {
			if n == 0 && errors.Is(f.err, io.EOF) {
				return io.EOF
			}
			return err
		}
		p[n] = byte(b)
	}
	return nil
}

// block reads the header of a block.
func (f *inflater) block() error {
	if f.final {
		f.align()
		f.state = atEnd
		return nil
	}
	head, err := f.take(3)
	if err != nil {
		return err
	}
	f.final = head&1 != 0
	switch head >> 1 {
	case 0:
		f.align()
		size, err := f.take(32)
		if err != nil {
			return err
		}
		if size>>16 != ^size&0xffff {
			return f.corrupt()
		}
		f.left, f.state = int(size&0xffff), inStored
		return nil
	case 1:
		fixed := fixedTables()
		f.lit, f.dist = &fixed.lit, &fixed.dist
	case 2:
		if err := f.dynamic(); err != nil {
			return err
		}
	default:
		return f.corrupt()
	}
	f.state = inHuffman
	return nil
}

// dynamic reads the codes of a block and makes their tables (RFC 1951, section 3.2.7).
func (f *inflater) dynamic() error {
	head, err := f.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlen := head&31+257, head>>5&31+1, head>>10+4
	if nlit > 286 || ndist > 30 {
		return f.corrupt()
	}
	var order [codeLengths]uint8
	for _, symbol := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[:nlen] {
		n, err := f.take(3)
		if err != nil {
			return err
		}
		order[symbol] = uint8(n)
	}
	if !buildTable(tableArgs{f.lengths[:], lengthBits, alphabet.codeLengths[:], order[:]}) {
		return f.corrupt()
	}
	var lengths [286 + 30]uint8
	if err := f.codeLengths(lengths[:nlit+ndist]); err != nil {
		return err
	}
	f.lit, f.dist = &f.dynamicLit, &f.dynamicDist
	if !buildTable(tableArgs{f.lit[:], literalBits, alphabet.literals[:], lengths[:nlit]}) ||
		!buildTable(tableArgs{f.dist[:], distanceBits, alphabet.distances[:], lengths[nlit : nlit+ndist]}) {
		return f.corrupt()
	}
	return nil
}

// codeLengths reads the lengths of codes.
func (f *inflater) codeLengths(lengths []uint8) error {
	for at := 0; at < len(lengths); {
		f.refill(lengthBits + 7)
		e := f.lengths[f.bits&(1<<lengthBits-1)]
		if e&entrySpecial != 0 {
			return f.corrupt()
		}
		if e.consumed() > f.count {
			return f.truncated()
		}
		f.bits >>= e.consumed()
		f.count -= e.consumed()
		value, repeat := uint8(e.value()), uint(1)
		var extra uint
		switch e.value() {
		case 16:
			if at == 0 {
				return f.corrupt()
			}
			value, repeat, extra = lengths[at-1], 3, 2
		case 17:
			value, repeat, extra = 0, 3, 3
		case 18:
			value, repeat, extra = 0, 11, 7
		}
		more, err := f.take(extra)
		if err != nil {
			return err
		}
		repeat += more
		if uint(len(lengths)-at) < repeat {
			return f.corrupt()
		}
		for range repeat {
			lengths[at] = value
			at++
		}
	}
	return nil
}

// stored copies a stored block to p from offset n on.
func (f *inflater) stored(p []byte, n int) (int, error) {
	for f.left > 0 && n < len(p) {
		if f.count > 0 {
			b, err := f.take(8)
			if err != nil {
				return n, err
			}
			p[n] = byte(b)
			n, f.left = n+1, f.left-1
			continue
		}
		if f.pos == len(f.buf) && !f.more() {
			return n, f.truncated()
		}
		k := copy(p[n:min(len(p), n+f.left)], f.buf[f.pos:])
		n, f.left, f.pos = n+k, f.left-k, f.pos+k
	}
	if f.left == 0 {
		f.state = atBlock
	}
	return n, nil
}

// huffman decodes a block to p from offset n on.
func (f *inflater) huffman(p []byte, n int) (int, error) {
	for f.state == inHuffman {
		if f.left > 0 {
			n = f.match(p, n)
		}
		if len(p)-n >= fastRoom && len(f.buf)-f.pos >= fastInput {
			var ok bool
			if n, ok = f.fast(p, n); !ok {
				return n, f.corrupt()
			}
			continue
		}
		if n == len(p) {
			return n, nil
		}
		var err error
		if n, err = f.symbol(p, n); err != nil {
			return n, err
		}
	}
	return n, nil
}

// match copies the rest of the current match, as far as p has room.
func (f *inflater) match(p []byte, n int) int {
	size := min(f.left, len(p)-n)
	f.left -= size
	end := n + size
	if old := f.back - n; old > 0 { // from before p
		start := len(f.window) - old
		n += copy(p[n:end], f.window[start:])
	}
	for ; n < end; n++ {
		p[n] = p[n-f.back]
	}
	return n
}

// next consumes the next code of a table. It returns the code's entry and extra bits.
func (f *inflater) next(table []entry, width uint) (entry, int, error) {
	f.refill(48)
	e := table[f.bits&(1<<width-1)]
	if e == entryInvalid {
		return 0, 0, f.corrupt()
	}
	var skipped uint
	if e&entrySubtable != 0 {
		skipped = width
		e = table[e.value()+int(f.bits>>width&(1<<e.code()-1))]
	}
	if e.consumed()+skipped > f.count {
		return 0, 0, f.truncated()
	}
	f.bits >>= skipped
	extra := int(f.bits & (1<<e.consumed() - 1) >> e.code())
	f.bits >>= e.consumed()
	f.count -= e.consumed() + skipped
	return e, extra, nil
}

// symbol decodes one literal, or a length and its distance, of which it copies what fits into p.
func (f *inflater) symbol(p []byte, n int) (int, error) {
	e, extra, err := f.next(f.lit[:], literalBits)
	if err != nil {
		return n, err
	}
	switch {
	case e&entryLiteral != 0:
		p[n] = byte(e.value())
		return n + 1, nil
	case e&entryEnd != 0 && e&entrySpecial != 0:
		f.state = atBlock
		return n, nil
	case e&entrySpecial != 0:
		return n, f.corrupt()
	}
	length := e.value() + extra
	if e, extra, err = f.next(f.dist[:], distanceBits); err != nil {
		return n, err
	}
	back := e.value() + extra
	if e&entrySpecial != 0 || back > n+len(f.window) {
		return n, f.corrupt()
	}
	f.left, f.back = length, back
	return f.match(p, n), nil
}

// fast decodes while there is enough input and room. It returns false if the block is corrupt. The
// bits of a refill suffice for three literals, or for a length with its distance.
func (f *inflater) fast(p []byte, n int) (_ int, ok bool) {
	buf, pos, bits, count := f.buf, f.pos, f.bits&(1<<f.count-1), f.count
	lit, dist, limit := f.lit, f.dist, len(p)-fastRoom
	for n <= limit && len(buf)-pos >= fastInput {
		bits, pos, count = loadBits(buf, pos, bits, count)
		e := lit[bits&(1<<literalBits-1)]
		if e&entryLiteral != 0 {
			bits, count = bits>>(e&63), count-uint(e&63)
			p[n] = byte(e >> 16)
			n++
			e = lit[bits&(1<<literalBits-1)]
			if e&entryLiteral != 0 {
				bits, count = bits>>(e&63), count-uint(e&63)
				p[n] = byte(e >> 16)
				n++
				e = lit[bits&(1<<literalBits-1)]
				if e&entryLiteral != 0 {
					bits, count = bits>>(e&63), count-uint(e&63)
					p[n] = byte(e >> 16)
					n++
					continue
				}
			}
			bits, pos, count = loadBits(buf, pos, bits, count)
		}
		if e&entrySpecial != 0 {
			if e&entrySubtable != 0 {
				bits, count = bits>>literalBits, count-literalBits
				e = lit[(uint64(e>>16)+bits&(1<<e.code()-1))&(literalSize-1)]
			}
			if e&entryLiteral != 0 {
				bits, count = bits>>(e&63), count-uint(e&63)
				p[n] = byte(e >> 16)
				n++
				continue
			}
			if e&entrySpecial != 0 {
				f.pos, f.bits, f.count, f.state = pos, bits>>(e&63), count-uint(e&63), atBlock
				return n, e&entryEnd != 0
			}
		}
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>e.code())
		bits, count = bits>>(e&63), count-uint(e&63)
		e = dist[bits&(1<<distanceBits-1)]
		if e&entrySubtable != 0 {
			bits, count = bits>>distanceBits, count-distanceBits
			e = dist[(uint64(e>>16)+bits&(1<<e.code()-1))&(distanceSize-1)]
		}
		back := int(e>>16) + int(bits&(1<<(e&63)-1)>>e.code())
		bits, count = bits>>(e&63), count-uint(e&63)
		switch {
		case e&entrySpecial != 0 || back > n+len(f.window):
			return n, false
		case back > n:
			f.left, f.back = length, back
			n = f.match(p, n)
		default:
			n = repeat(p, n, back, length)
		}
	}
	f.pos, f.bits, f.count = pos, bits, count
	return n, true
}

// loadBits loads bits until there are at least 56. It loads whole words: the bits above count are
// those that the next call loads again.
func loadBits(buf []byte, pos int, bits uint64, count uint) (uint64, int, uint) {
	return bits | binary.LittleEndian.Uint64(buf[pos:])<<(count&63), pos + int(63-count)>>3, count | 56
}

// repeat copies a match within p. It may write up to a word more.
func repeat(p []byte, n, back, length int) int {
	end, from := n+length, n-back
	if back < wordSize {
		repeatWord(p[:end+wordSize], n, back)
		return end
	}
	for n < end {
		binary.LittleEndian.PutUint64(p[n:], binary.LittleEndian.Uint64(p[from:]))
		n += wordSize
		from += wordSize
	}
	return end
}

// repeatWord fills p from offset n with copies of the back bytes before it, fewer than a word. The
// last word of p is only room for the last store.
func repeatWord(p []byte, n, back int) {
	word := binary.LittleEndian.Uint64(p[n-back:]) & (1<<(8*back) - 1)
	for width := 8 * back; width < 64; width *= 2 {
		word |= word << width
	}
	step := wordSize / back * back
	for ; n <= len(p)-wordSize; n += step {
		binary.LittleEndian.PutUint64(p[n:], word)
	}
}
