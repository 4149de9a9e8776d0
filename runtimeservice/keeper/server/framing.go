package server

import (
	"bytes"
	"time"
)

// maxLine is where a line of output is split, in bytes of text.
const maxLine = 16 << 10

// headSize is the length of "2006-01-02T15:04:05.000000000Z stdout F ".
const headSize = 30 + 1 + 6 + 1 + 2

// head is the beginning of a log line, the same for all lines of one batch but
// for its tag, which tagAt tells.
func head(dst []byte, at time.Time, stream string) []byte {
	dst = at.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	return append(dst, " F "...)
}

// tagAt is where the tag stands from the end of a head.
const tagAt = 2

// frame appends the CRI log lines of data to out, as many as fit in out's
// capacity, and returns how many bytes of data they took. What it leaves is,
// when full is false, less than a line: at most maxLine bytes without newline,
// whose end is still to come. With last set the end has come.
//
// The tag F says that the text had a newline, and P that it goes on or, at the
// end, that it had none: readers put a newline after F only. A text longer than
// maxLine becomes several lines, all but the last with the tag P.
func frame(out, head, data []byte, last bool) (_ []byte, used int, full bool) {
	for used < len(data) {
		rest := data[used:]
		size, tag := cut(rest, last)
		if size == 0 {
			return out, used, false
		}
		if len(out)+len(head)+size+1 > cap(out) {
			return out, used, true
		}
		out = append(out, head...)
		if tag != 'F' {
			out[len(out)-tagAt] = tag
		}
		out = append(out, rest[:size]...)
		if rest[size-1] != '\n' {
			out = append(out, '\n')
		}
		used += size
	}
	return out, used, false
}

// cut returns the size of the first line of data with its newline, if it has
// one, and its tag; size 0 if more data is needed to know.
func cut(data []byte, last bool) (size int, tag byte) {
	window := data[:min(len(data), maxLine+1)]
	if i := bytes.IndexByte(window, '\n'); i >= 0 {
		return i + 1, 'F'
	}
	if len(data) > maxLine {
		return maxLine, 'P'
	}
	if last {
		return len(data), 'P'
	}
	return 0, 0
}
