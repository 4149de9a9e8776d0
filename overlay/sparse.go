package overlay

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const tarBlock = 512

// fragment is a range of data in a sparse file.
type fragment struct{ at, size int64 }

// isSparse reports whether archive/tar treats an entry as a sparse file (GNU tar manual, "Storing
// Sparse Files").
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	switch h.PAXRecords["GNU.sparse.major"] + "." + h.PAXRecords["GNU.sparse.minor"] {
	case "0.0", "0.1", "1.0":
		return true
	case ".":
		return h.PAXRecords["GNU.sparse.map"] != ""
	}
	return false
}

// sparseContent writes a sparse file and records its data as raw bytes. It reads the data itself,
// because archive/tar returns all zeros in between, and a hostile tar can claim any number of
// zeros.
func (x *extractor) sparseContent(h *tar.Header, job *fileJob) error {
	m, physical, err := sparseMap(h, x.header, x.record.total-int64(len(x.header)))
	if err == nil {
		err = x.budget.spend(int64(len(m)) * costFragment)
	}
	if err != nil {
		job.dir.release()
		return err
	}
	job.chunks = make(chan chunk, chunkQueue)
	x.writers.submit(job)
	defer close(job.chunks)
	for _, f := range m {
		for done := int64(0); done < f.size; {
			c := chunk{buf: x.writers.buffer(), n: int(min(f.size-done, bufferSize)), at: f.at + done}
			if _, err := io.ReadFull(x.record, c.bytes()); err != nil {
				return fmt.Errorf("read content: %w", truncated(err))
			}
			if err := x.countInput(); err != nil {
				return err
			}
			if err := x.keepRaw(x.record.take()); err != nil {
				return err
			}
			if err := x.send(job, c); err != nil {
				return err
			}
			done += int64(c.n)
		}
	}
	padding := make([]byte, roundUp(physical)-physical)
	if _, err := io.ReadFull(x.record, padding); err != nil {
		return fmt.Errorf("read content: %w", truncated(err))
	}
	x.tar = tar.NewReader(x.record) // the old reader's position is wrong after the direct reads
	return nil
}

// sparseMap returns the fragments of an entry. raw has the entry's headers and begins at offset
// start of the tar. archive/tar has validated them. physical is the number of bytes that the tar
// has of the file.
func sparseMap(h *tar.Header, raw []byte, start int64) (m []fragment, physical int64, err error) {
	at := roundUp(start) - start // after the padding of the previous entry
	for at+tarBlock <= int64(len(raw)) && strings.IndexByte("xLK", raw[at+156]) >= 0 {
		size, err := number(raw[at+124 : at+136])
		if err != nil {
			return nil, 0, err
		}
		at += tarBlock + roundUp(size)
	}
	if at < 0 || at+tarBlock > int64(len(raw)) {
		return nil, 0, invalid("the headers of a sparse file are at an unexpected offset")
	}
	header, rest := raw[at:at+tarBlock], raw[at+tarBlock:]
	if size := h.PAXRecords["size"]; size != "" {
		physical, err = strconv.ParseInt(size, 10, 64)
	} else {
		physical, err = number(header[124:136])
	}
	if err != nil {
		return nil, 0, err
	}
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		m, err = oldMap(header, rest)
	case h.PAXRecords["GNU.sparse.major"] == "1":
		physical -= int64(len(rest))
		m, err = newMap(rest)
	case h.PAXRecords["GNU.sparse.map"] != "":
		m, err = textMap(h.PAXRecords["GNU.sparse.map"], ",")
	}
	if err != nil {
		return nil, 0, err
	}
	left := physical
	for _, f := range m {
		left -= f.size
	}
	if left != 0 {
		return nil, 0, invalid("the map of a sparse file does not match its data")
	}
	return m, physical, nil
}

// oldMap reads the map of the old GNU format: four fragments in the header and 21 in each block
// after it.
func oldMap(header, rest []byte) ([]fragment, error) {
	var m []fragment
	table, extended := header[386:482], header[482]
	for {
		for ; len(table) >= 24 && table[0] != 0; table = table[24:] {
			at, err := number(table[:12])
			if err != nil {
				return nil, err
			}
			size, err := number(table[12:24])
			if err != nil {
				return nil, err
			}
			m = append(m, fragment{at, size})
		}
		if extended == 0 || len(rest) < tarBlock {
			return m, nil
		}
		table, extended, rest = rest[:504], rest[504], rest[tarBlock:]
	}
}

// newMap reads the map of the PAX format 1.0, which precedes the data: the number of fragments,
// then each fragment, one number per line.
func newMap(text []byte) ([]fragment, error) {
	count, rest, _ := bytes.Cut(text, []byte{'\n'})
	n, err := strconv.Atoi(string(count))
	if err != nil || n < 0 {
		return nil, invalid("the map of a sparse file is malformed")
	}
	end := 0 // of 2n lines
	for range 2 * n {
		line := bytes.IndexByte(rest[end:], '\n')
		if line < 0 {
			return nil, invalid("the map of a sparse file is malformed")
		}
		end += line + 1
	}
	return textMap(strings.TrimSuffix(string(rest[:end]), "\n"), "\n")
}

// textMap reads pairs of numbers.
func textMap(text, separator string) ([]fragment, error) {
	var m []fragment
	for more := text != ""; more; {
		var at, size string
		if at, text, more = strings.Cut(text, separator); !more {
			break
		}
		size, text, more = strings.Cut(text, separator)
		f, err := parseFragment(at, size)
		if err != nil {
			return nil, invalid("the map of a sparse file is malformed")
		}
		m = append(m, f)
	}
	return m, nil
}

func parseFragment(at, size string) (f fragment, err error) {
	if f.at, err = strconv.ParseInt(at, 10, 64); err == nil {
		f.size, err = strconv.ParseInt(size, 10, 64)
	}
	return f, err
}

// number reads a number of a tar header: octal digits, or GNU's base 256.
func number(field []byte) (int64, error) {
	if field[0]&0x80 != 0 {
		n := int64(field[0] & 0x7f)
		for _, b := range field[1:] {
			if n >= 1<<54 {
				return 0, invalid("a number in the header is too large")
			}
			n = n<<8 | int64(b)
		}
		return n, nil
	}
	text := strings.Trim(string(field), " \x00")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 8, 64)
	if err != nil || n < 0 {
		return 0, invalid("a number in the header is malformed")
	}
	return n, nil
}

func roundUp(n int64) int64 { return (n + tarBlock - 1) / tarBlock * tarBlock }
