package hostile

import (
	"archive/tar"
	"fmt"
	"strings"
)

// entries attack the code that tracks a layer's entries and writes them to the disk.
func entries() []Image {
	return []Image{
		{Name: "symlinks-with-long-targets", Volume: true, build: layered(longLinks)},
		{Name: "chains-of-links", Quick: true, build: layered(linkChains)},
		{Name: "files-distinct", build: layered(distinct(1_000_000, tar.TypeReg, "f%07d"))},
		{Name: "directories-distinct", Volume: true, build: layered(distinct(600_000, tar.TypeDir, "d%07d/"))},
		{Name: "directories-implied", build: layered(distinct(500_000, tar.TypeReg, "d%06d/f"))},
		{Name: "directories-implied-by-many-layers", Says: "lookups", build: impliedByLayers},
		{Name: "file-again", build: layered(same(item{kind: tar.TypeReg, name: "f"}))},
		{Name: "directory-again", build: layered(same(item{kind: tar.TypeDir, name: "d/"}))},
		{Name: "file-and-directory-by-turns", build: layered(byTurns)},
		{Name: "tree-replaced-by-file", build: layered(trees)},
		{Name: "directories-deep", Quick: true, build: layered(deep(1, 2000))},
		{Name: "directories-deep-20k-files", build: layered(deep(20_000, 2000))},
		{Name: "directories-deep-apart", build: layered(deepApart)},
		{Name: "hard-links", build: layered(hardLinks(1_000_000, "h%07d"))},
		{Name: "hard-link-again", build: layered(hardLinks(5_000_000, "h"))},
		{Name: "whiteouts", build: layered(distinct(1_000_000, tar.TypeReg, ".wh.%07d"))},
		{Name: "whiteout-again", build: layered(same(item{kind: tar.TypeReg, name: ".wh.f"}))},
		{Name: "opaque-again", build: layered(same(item{kind: tar.TypeReg, name: "d/.wh..wh..opq"}))},
		{Name: "devices", build: layered(distinct(500_000, tar.TypeChar, "c%07d"))},
		{Name: "fifos", build: layered(distinct(500_000, tar.TypeFifo, "p%07d"))},
		{Name: "many-small-layers", build: smallLayers},
	}
}

func distinct(n int, kind byte, format string) func() packed {
	return func() packed {
		return hashed().each(n, func(i int) []byte { return header(item{kind: kind, name: fmt.Sprintf(format, i)}, 0) }).end()
	}
}

// same repeats one entry 4,000,000 times.
func same(i item) func() packed {
	return func() packed {
		const batch = 10_000
		return (&packer{}).add([]byte(strings.Repeat(string(i.bytes()), batch)), 4_000_000/batch).end()
	}
}

func longLinks() packed {
	target := strings.Repeat("t", 4000)
	return hashed().each(100_000, func(i int) []byte {
		return item{kind: tar.TypeSymlink, name: fmt.Sprintf("l%06d", i), link: target, prefix: long("", target)}.bytes()
	}).end()
}

// linkChains makes 40 links, each of which passes 2,000 components to the next, and entries behind
// them.
func linkChains() packed {
	walk := "d/" + strings.Repeat("./", 1990)
	p := hashed().add(item{kind: tar.TypeDir, name: "d/"}.bytes(), 1)
	for i := range 40 {
		next := walk + "../"
		if i > 0 {
			next += fmt.Sprintf("l%d", i-1)
		} else {
			next += "d"
		}
		p.add(item{kind: tar.TypeSymlink, name: fmt.Sprintf("l%d", i), link: next, prefix: long("", next)}.bytes(), 1)
	}
	return p.each(20_000, func(i int) []byte {
		return item{kind: tar.TypeReg, name: fmt.Sprintf("l39/f%d", i)}.bytes()
	}).end()
}

// byTurns makes one name alternately a file, a directory, a link and so on.
func byTurns() packed {
	turn := item{kind: tar.TypeReg, name: "x"}.bytes()
	turn = append(turn, item{kind: tar.TypeDir, name: "x/"}.bytes()...)
	turn = append(turn, item{kind: tar.TypeReg, name: "x/f"}.bytes()...)
	turn = append(turn, item{kind: tar.TypeSymlink, name: "x", link: "y"}.bytes()...)
	return (&packer{}).add([]byte(strings.Repeat(string(turn), 1000)), 700).end()
}

// trees fills a directory and replaces it by a file, many times.
func trees() packed {
	turn := item{kind: tar.TypeDir, name: "x/"}.bytes()
	for i := range 20_000 {
		turn = append(turn, item{kind: tar.TypeReg, name: fmt.Sprintf("x/f%d", i)}.bytes()...)
	}
	return (&packer{}).add(append(turn, item{kind: tar.TypeReg, name: "x"}.bytes()...), 50).end()
}

// deep writes n files into a directory that many levels down.
func deep(n, levels int) func() packed {
	return func() packed {
		dir := strings.Repeat("d/", levels)
		return hashed().each(n, func(i int) []byte {
			name := fmt.Sprintf("%sf%d", dir, i)
			return item{kind: tar.TypeReg, name: name, prefix: long(name, "")}.bytes()
		}).end()
	}
}

// deepApart writes every file into separate deep directories.
func deepApart() packed {
	return hashed().each(3000, func(i int) []byte {
		name := fmt.Sprintf("%d/%sf", i, strings.Repeat("d/", 2000))
		return item{kind: tar.TypeReg, name: name, prefix: long(name, "")}.bytes()
	}).end()
}

func hardLinks(n int, format string) func() packed {
	return func() packed {
		p := hashed().add(item{kind: tar.TypeReg, name: "f", data: []byte("content")}.bytes(), 1)
		return p.each(min(n, 1_000_000), func(i int) []byte {
			name := format
			if strings.Contains(format, "%") {
				name = fmt.Sprintf(format, i)
			}
			return header(item{kind: tar.TypeLink, name: name, link: "f"}, 0)
		}).end()
	}
}

// impliedByLayers makes layers of directories that none lists. The daemon looks for each directory in
// all layers below.
func impliedByLayers(p *parts) error {
	for i := range 250 {
		l := hashed().each(32, func(k int) []byte { return header(item{kind: tar.TypeReg, name: fmt.Sprintf("d%d-%d/f", i, k)}, 0) }).end()
		if err := p.layer(l); err != nil {
			return err
		}
	}
	return nil
}

// smallLayers makes as many layers as an image may have, each with one file.
func smallLayers(p *parts) error {
	for i := range 450 {
		l := hashed().add(item{kind: tar.TypeReg, name: fmt.Sprintf("f%d", i), data: make([]byte, 4<<20)}.bytes(), 1).end()
		if err := p.layer(l); err != nil {
			return err
		}
	}
	return nil
}
