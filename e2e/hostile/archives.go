package hostile

import (
	"archive/tar"
	"fmt"
	"strings"
)

// Archive is a checkpoint archive of at most [MaxBytes] that attacks one limit.
type Archive struct {
	Name  string
	Quick bool // see Image
	build func() []byte
}

// Bytes generates the archive.
func (a Archive) Bytes() ([]byte, error) {
	data := a.build()
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("make hostile archive %s: it has %d bytes, more than %d", a.Name, len(data), MaxBytes)
	}
	return data, nil
}

// The files of a checkpoint archive that describe the container, with the minimal content.
const (
	configFile = "config.dump"
	specFile   = "spec.dump"
	configText = `{"id":"abc","name":"c","rootfsImageName":"registry.test/mica/busybox:latest"`
	specText   = `{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/"},"linux":{}`
)

// Archives returns all attacks with checkpoint archives.
func Archives() []Archive {
	const metadata = 8<<20 - 4096
	return []Archive{
		{"spec-mounts", true, described(specFile, specText+`,"mounts":[`+strings.Repeat("{},", metadata/3)+"{}]}")},
		{"spec-nested", false, described(specFile, strings.Repeat("[", metadata))},
		{"config-keys", false, described(configFile, configText+`,"x":[`+strings.Repeat("{},", metadata/3)+"{}]}")},
		{"files-before-the-description", false, whole(func(p *packer) {
			p.add([]byte(strings.Repeat(string(item{kind: tar.TypeReg, name: "x"}.bytes()), 10_000)), 200)
		})},
		{"images-10gb", true, whole(func(p *packer) {
			p.addMember(zeroMember(item{kind: tar.TypeReg, name: "checkpoint/pages-1.img", size: huge}.bytes(), 600), 1)
		})},
		{"images-by-the-million", false, whole(func(p *packer) {
			p.each(500_000, func(n int) []byte { return item{kind: tar.TypeReg, name: fmt.Sprintf("checkpoint/%d", n)}.bytes() })
		})},
		{"images-sparse", false, whole(func(p *packer) {
			prefix := pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", fmt.Sprint(huge))
			p.add(item{kind: tar.TypeReg, name: "checkpoint/pages-1.img", prefix: prefix, data: append([]byte("0\n"), make([]byte, block-2)...)}.bytes(), 1)
		})},
		{"zstd-window", true, func() []byte {
			return zstdZeros(item{kind: tar.TypeReg, name: "x", size: huge}.bytes(), 128<<20, 600*16)
		}},
		{"pax-records", false, whole(func(p *packer) { p.addMember(paxRecord(1<<20-64, 6000)().data, 1) })},
	}
}

// described returns an archive with a single file, which describes the container.
func described(name, text string) func() []byte {
	return func() []byte {
		other, rest := specFile, specText
		if name == specFile {
			other, rest = configFile, configText
		}
		p := &packer{}
		p.add(item{kind: tar.TypeReg, name: name, data: []byte(text)}.bytes(), 1)
		return p.add(item{kind: tar.TypeReg, name: other, data: []byte(rest + "}")}.bytes(), 1).end().data
	}
}

// whole returns an archive that describes the container, with the parts that f adds in front.
func whole(f func(*packer)) func() []byte {
	return func() []byte {
		p := &packer{}
		f(p)
		p.add(item{kind: tar.TypeReg, name: configFile, data: []byte(configText + "}")}.bytes(), 1)
		return p.add(item{kind: tar.TypeReg, name: specFile, data: []byte(specText + "}")}.bytes(), 1).end().data
	}
}
