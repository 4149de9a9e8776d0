package hostile

import (
	"archive/tar"
	"fmt"
	"strings"
)

// headers attack the reader of tar headers: PAX records, long names, attributes and sparse maps.
func headers() []Image {
	return []Image{
		{Name: "pax-record-8mb", Quick: true, build: layered(paxRecord(8<<20-1024, 1))},
		{Name: "pax-record-8mb-again", build: layered(paxRecord(8<<20-1024, 800))},
		{Name: "pax-record-1mb-again", Quick: true, build: layered(paxRecord(1<<20, 6000))},
		{Name: "pax-record-64mb", build: layered(paxRecord(64<<20, 1))},
		{Name: "pax-records-many", Quick: true, build: layered(paxRecords)},
		{Name: "pax-headers-chained", build: layered(repeated(pax("comment", ""), 2_000_000))},
		{Name: "pax-global-again", build: layered(repeated(item{kind: tar.TypeXGlobalHeader, name: "g", data: []byte(record("comment", "x"))}.bytes(), 2_000_000))},
		{Name: "pax-global-large", build: layered(globals)},
		{Name: "long-name-8mb-again", Quick: true, build: layered(repeated(long(strings.Repeat("n", 8<<20-2048), ""), 800))},
		{Name: "long-names-chained", build: layered(repeated(long("n", "l"), 900_000))},
		{Name: "long-names-4k", build: layered(longNames)},
		{Name: "attributes", build: layered(attributes(256, 8, 8000))},
		{Name: "attributes-large", build: layered(attributes(200, 40<<10, 1))},
		{Name: "attributes-again", build: layered(attributes(250, 3, 20_000))},
		{Name: "sparse-map-old", Quick: true, build: layered(sparseOld)},
		{Name: "sparse-map-pax-0.1", build: layered(sparseRecord)},
		{Name: "sparse-map-pax-1.0", Quick: true, build: layered(sparseData)},
		{Name: "sparse-files-huge", build: layered(sparseFiles)},
	}
}

// repeated is one piece of a tar, repeated many times.
func repeated(piece []byte, times int) func() packed {
	return func() packed {
		batch := max(1, min(times, (4<<20)/len(piece)))
		return (&packer{}).add([]byte(strings.Repeat(string(piece), batch)), times/batch).end()
	}
}

func paxRecord(size, times int) func() packed {
	return repeated(item{kind: tar.TypeReg, name: "f", prefix: pax("comment", strings.Repeat("c", size))}.bytes(), times)
}

// paxRecords makes entries with a hundred thousand records each.
func paxRecords() packed {
	var pairs []string
	for i := range 100_000 {
		pairs = append(pairs, fmt.Sprintf("k%d", i), "")
	}
	return (&packer{}).add(item{kind: tar.TypeReg, name: "f", prefix: pax(pairs...)}.bytes(), 20).end()
}

// globals makes global headers that each define many records.
func globals() packed {
	var records []byte
	for i := range 50_000 {
		records = append(records, record(fmt.Sprintf("SCHILY.xattr.user.k%d", i), "v")...)
	}
	return (&packer{}).add(item{kind: tar.TypeXGlobalHeader, name: "g", data: records}.bytes(), 20).
		add(item{kind: tar.TypeReg, name: "f"}.bytes(), 10_000).end()
}

func longNames() packed {
	return hashed().each(200_000, func(i int) []byte {
		name := strings.Repeat("./", 1900) + fmt.Sprintf("f%06d", i)
		return item{kind: tar.TypeReg, name: name, prefix: long(name, "")}.bytes()
	}).end()
}

// attributes makes files with count extended attributes of size bytes each.
func attributes(count, size, files int) func() packed {
	return func() packed {
		var pairs []string
		for i := range count {
			pairs = append(pairs, fmt.Sprintf("SCHILY.xattr.user.k%d", i), strings.Repeat("v", size))
		}
		prefix := pax(pairs...)
		return hashed().each(files, func(i int) []byte {
			return item{kind: tar.TypeReg, name: fmt.Sprintf("f%d", i), prefix: prefix}.bytes()
		}).end()
	}
}

// segments is the number of segments in the sparse maps.
const segments = 1_000_000

// sparseOld makes a file in GNU's old sparse form: blocks of 21 segments each follow the header.
func sparseOld() packed {
	segment := func(i int) []byte { return fmt.Appendf(nil, "%011o\x00%011o\x00", i*1024, 1) }
	old := make([]byte, block-345)
	for i := range 4 {
		copy(old[386-345+24*i:], segment(i))
	}
	old[482-345] = 1 // more blocks follow
	copy(old[483-345:], fmt.Sprintf("%011o\x00", segments*1024))
	i := item{kind: tar.TypeGNUSparse, name: "s", size: segments, old: old}
	p := hashed().add(i.bytes(), 1)
	p.each(segments/21, func(n int) []byte {
		b := make([]byte, block)
		for k := range 21 {
			copy(b[24*k:], segment(4+n*21+k))
		}
		if n < segments/21-1 {
			b[504] = 1
		}
		return b
	})
	return p.add(make([]byte, segments+block-segments%block), 1).end()
}

// sparseRecord makes a file whose sparse map is one PAX record.
func sparseRecord() packed {
	var text strings.Builder
	for i := range segments / 2 {
		fmt.Fprintf(&text, "%d,1,", i*1024)
	}
	prefix := pax("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", fmt.Sprint(segments*1024),
		"GNU.sparse.numblocks", fmt.Sprint(segments/2), "GNU.sparse.map", strings.TrimSuffix(text.String(), ","))
	return hashed().add(item{kind: tar.TypeReg, name: "s", prefix: prefix, data: make([]byte, segments/2)}.bytes(), 1).end()
}

// sparseData makes a file whose sparse map precedes its data.
func sparseData() packed {
	var text strings.Builder
	fmt.Fprintf(&text, "%d\n", segments)
	for i := range segments {
		fmt.Fprintf(&text, "%d\n1\n", i*1024)
	}
	data := []byte(text.String())
	data = append(data, make([]byte, -len(data)&(block-1)+segments)...)
	prefix := pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", fmt.Sprint(segments*1024))
	return hashed().add(item{kind: tar.TypeReg, name: "s", prefix: prefix, data: data}.bytes(), 1).end()
}

// sparseFiles makes many files with a huge size and no data.
func sparseFiles() packed {
	return hashed().each(200_000, func(i int) []byte {
		prefix := pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1099511627776")
		return item{kind: tar.TypeReg, name: fmt.Sprintf("s%d", i), prefix: prefix, data: append([]byte("0\n"), make([]byte, block-2)...)}.bytes()
	}).end()
}
