package decompress

import (
	"math/bits"
	"sync"
)

// A Huffman table decodes the next bits of a deflate stream (RFC 1951) with one look-up, or with
// two if the code is longer than the table's width: the first entry then refers to a subtable.
//
// An entry has these fields, lowest bits first:
//
//	0–5    bits to consume: those of the code and the extra bits behind it
//	8–11   bits of the code alone, or the width of the subtable
//	12–15  kind
//	16–31  value: a literal, the base of a length or distance, or the start of the subtable
type entry uint32

const (
	entryLiteral  entry = 1 << 12
	entrySpecial  entry = 1 << 13 // neither a literal nor the base of a length or distance
	entrySubtable entry = 1 << 14 // with entrySpecial
	entryEnd      entry = 1 << 15 // with entrySpecial: end of the block
	entryInvalid        = entrySpecial
)

// consumed returns the number of bits to consume.
func (e entry) consumed() uint { return uint(e & 63) }

// code returns the number of bits of the code, or the width of the subtable.
func (e entry) code() uint { return uint(e>>8) & 15 }

func (e entry) value() int { return int(e >> 16) }

const (
	maxCode     = 15  // bits of a code
	literals    = 288 // symbols of literals and lengths, with two that are never valid
	distances   = 32  // symbols of distances, with two that are never valid
	codeLengths = 19  // symbols of the code that the lengths of the other codes have

	// Widths of the tables in bits. The sizes are powers of two, so that a mask makes every index
	// valid; with the subtables the tables need at most 2,342 and 592 entries.
	literalBits, literalSize   = 11, 4096
	distanceBits, distanceSize = 9, 1024
	lengthBits                 = 7
)

type (
	literalTable  [literalSize]entry
	distanceTable [distanceSize]entry
	lengthTable   [1 << lengthBits]entry
)

// symbols are the entries of an alphabet's symbols without their codes.
type symbols struct {
	literals    [literals]entry
	distances   [distances]entry
	codeLengths [codeLengths]entry
}

var alphabet = newSymbols()

// newSymbols returns the alphabets of RFC 1951, section 3.2.5.
func newSymbols() *symbols {
	s := new(symbols)
	for n := range 256 {
		s.literals[n] = entryLiteral | entry(n)<<16
	}
	s.literals[256] = entrySpecial | entryEnd
	base := 3
	for n := range 29 {
		extra := max(0, n/4-1)
		s.literals[257+n] = entry(extra) | entry(base)<<16
		base += 1 << extra
	}
	s.literals[285] = 258 << 16
	s.literals[286], s.literals[287] = entryInvalid, entryInvalid
	base = 1
	for n := range 30 {
		extra := max(0, n/2-1)
		s.distances[n] = entry(extra) | entry(base)<<16
		base += 1 << extra
	}
	s.distances[30], s.distances[31] = entryInvalid, entryInvalid
	for n := range codeLengths {
		s.codeLengths[n] = entry(n) << 16
	}
	return s
}

// codeTables are the tables of a block.
type codeTables struct {
	lit  literalTable
	dist distanceTable
}

// fixedTables returns the tables of RFC 1951, section 3.2.6, which nobody changes. A stream can have
// a block of them in ten bits, so they are made only once.
var fixedTables = sync.OnceValue(func() *codeTables {
	var lengths [literals]uint8
	for n := range lengths {
		switch {
		case n < 144, n >= 280:
			lengths[n] = 8
		case n < 256:
			lengths[n] = 9
		default:
			lengths[n] = 7
		}
	}
	t := new(codeTables)
	buildTable(tableArgs{t.lit[:], literalBits, alphabet.literals[:], lengths[:]})
	for n := range distances {
		lengths[n] = 5
	}
	buildTable(tableArgs{t.dist[:], distanceBits, alphabet.distances[:], lengths[:distances]})
	return t
})

// tableArgs describes a table to build.
type tableArgs struct {
	table   []entry
	width   uint    // of the table in bits; the rest of table is for subtables
	symbols []entry // without codes
	lengths []uint8 // of the codes, in bits; zero for a symbol without a code
}

// buildTable fills a table for the canonical code with these lengths. It reports whether the code
// is valid: complete, or one code of one bit, or empty. An empty code decodes nothing.
func buildTable(a tableArgs) bool {
	var count, next [maxCode + 2]int
	for _, n := range a.lengths {
		count[n]++
	}
	used := len(a.lengths) - count[0]
	count[0] = 0
	open := 1 // codes of the current length that are not used yet
	for n := 1; n <= maxCode; n++ {
		open = open<<1 - count[n]
		if open < 0 {
			return false
		}
		next[n+1] = next[n] + count[n]
	}
	var sorted [literals]uint16
	for symbol, n := range a.lengths {
		if n > 0 {
			sorted[next[n]] = uint16(symbol)
			next[n]++
		}
	}
	if open > 0 {
		if used > 1 || used == 1 && count[1] == 0 {
			return false
		}
		a.table[0], a.table[1] = entryInvalid, entryInvalid
		if used == 1 {
			a.table[0] = a.symbols[sorted[0]] + 1 + 1<<8
		}
		for n := uint(1); n < a.width; n++ {
			copy(a.table[1<<n:2<<n], a.table[:1<<n])
		}
		return true
	}
	a.fill(sorted[:used], &count)
	return true
}

// fill assigns the codes of a complete code to the sorted symbols. count is the number of codes of
// each length. Codes are read from their highest bit, so an index has them in reverse.
func (a tableArgs) fill(sorted []uint16, count *[maxCode + 2]int) {
	code := uint(0) // reversed
	n := uint(1)
	for ; n <= a.width; n++ {
		for range count[n] {
			a.table[code] = a.symbols[sorted[0]] + entry(n+n<<8)
			sorted = sorted[1:]
			code = nextCode(code, n)
		}
		if n < a.width {
			copy(a.table[1<<n:2<<n], a.table[:1<<n])
		}
	}
	end := uint(1) << a.width // of the entries in use
	start, width, prefix := uint(0), uint(0), ^uint(0)
	for ; len(sorted) > 0; n++ {
		for left := count[n]; left > 0; left-- {
			if p := code & (1<<a.width - 1); p != prefix {
				prefix, width = p, subtableWidth(n, a.width, left, count)
				start, end = end, end+1<<width
				a.table[prefix] = entrySpecial | entrySubtable | entry(a.width+width<<8) | entry(start)<<16
			}
			e := a.symbols[sorted[0]] + entry((n-a.width)+(n-a.width)<<8)
			for at := code >> a.width; at < 1<<width; at += 1 << (n - a.width) {
				a.table[start+at] = e
			}
			sorted = sorted[1:]
			code = nextCode(code, n)
		}
	}
}

// nextCode returns the reversed code of n bits after code. After the last code it returns zero.
func nextCode(code, n uint) uint {
	zeros := code ^ (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	bit := uint(1) << (bits.Len(zeros) - 1)
	return code&(bit-1) | bit
}

// subtableWidth returns the width of the subtable that begins with a code of n bits. left is the
// number of codes of n bits that are not assigned yet.
func subtableWidth(n, width uint, left int, count *[maxCode + 2]int) uint {
	sub := n - width
	for space := left; space < 1<<sub; {
		sub++
		space = space<<1 + count[width+sub]
	}
	return sub
}
