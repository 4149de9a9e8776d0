package server

import (
	"bytes"
	"time"
)

// maxLine is the maximum length of a line's text in the log, in bytes. Longer lines are split.
const maxLine = 16 << 10

// headSize is the length of "2006-01-02T15:04:05.000000000Z stdout F ".
const headSize = 30 + 1 + 6 + 1 + 2

// head appends the start of a log line. All lines of a batch share it; only the tag differs.
func head(dst []byte, at time.Time, stream string) []byte {
	dst = at.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	return append(dst, " F "...)
}

// tagAt is the distance of the tag from the end of a head.
const tagAt = 2

// frame appends the CRI log lines of data to out, as many as out's capacity allows. It returns how
// many bytes of data they contain. If full is false, the rest is less than a line: at most maxLine
// bytes whose newline has not come yet. With last set, nothing more comes and no rest remains.
//
// Tag F means that the text ended with a newline. Tag P means that the text continues or, at the
// end of the output, that it has no newline: readers add a newline after F only. A text longer than
// maxLine becomes several lines; all but the last have the tag P.
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

// cut returns the size of data's first line including its newline, if there is one, and the line's
// tag. Size 0 means that more data is needed.
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
