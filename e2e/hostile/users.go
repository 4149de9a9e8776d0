package hostile

import (
	"archive/tar"
	"fmt"
	"strings"
)

// users attack the lookup of a container's user and groups.
func users() []Image {
	passwd := "root:x:0:0::/:/bin/sh\nu:x:7:7::/:/bin/sh\n"
	return []Image{
		{Name: "groups-100k", Quick: true, User: "u", build: layered(userFiles(passwd, groups(100_000, "u")))},
		{Name: "groups-with-many-members", User: "u", build: layered(userFiles(passwd, groups(200, strings.Repeat("m,", 18_000)+"u")))},
		{Name: "users-200k", User: "u", build: layered(userFiles(strings.Repeat("x:x:1:1:::\n", 500_000)+passwd, "root:x:0:\n"))},
		{Name: "passwd-one-line", Quick: true, User: "u", build: layered(userFiles(strings.Repeat("a", 100<<20), "root:x:0:\n"))},
		{Name: "passwd-one-line-7mb", User: "u", Says: "is not in", build: layered(userFiles(strings.Repeat(":", 7<<20), "root:x:0:\n"))},
		{Name: "group-one-line", User: "u", build: layered(userFiles(passwd, "g:x:7:"+strings.Repeat("u,", 50<<20)))},
		{Name: "group-one-line-7mb", User: "u", build: layered(userFiles(passwd, "g:x:7:"+strings.Repeat("u,", 3<<20)))},
		{Name: "passwd-sparse", Quick: true, User: "u", build: layered(sparseUsers("etc/passwd"))},
		{Name: "group-sparse", User: "u", build: layered(sparseUsers("etc/group"))},
	}
}

func groups(n int, members string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "g%d:x:%d:%s\n", i, 1000+i, members)
	}
	return b.String()
}

func userFiles(passwd, group string) func() packed {
	return func() packed {
		return hashed().add(item{kind: tar.TypeReg, name: "etc/passwd", data: []byte(passwd)}.bytes(), 1).
			add(item{kind: tar.TypeReg, name: "etc/group", data: []byte(group)}.bytes(), 1).end()
	}
}

// sparseUsers makes a file of ten gigabytes without data.
func sparseUsers(name string) func() packed {
	return func() packed {
		prefix := pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name, "GNU.sparse.realsize", fmt.Sprint(huge))
		text := append([]byte(fmt.Sprintf("1\n%d\n0\n", huge)), make([]byte, block)...)[:block]
		return hashed().add(item{kind: tar.TypeReg, name: name, prefix: prefix, data: text}.bytes(), 1).end()
	}
}
