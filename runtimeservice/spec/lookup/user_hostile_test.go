package lookup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
)

func number(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// TestNumericNames holds that an image cannot redirect a number to another user or group with a
// name of the same digits.
func TestNumericNames(t *testing.T) {
	root := rootfs(t, map[string]string{
		"etc/passwd": "1000:x:0:0::/:/bin/sh\nroot:x:0:0::/root:/bin/sh\n77:x:78:79::/home/77:\n",
		"etc/group":  "2000:x:0:\nroot:x:0:1000\nstaff:x:50:77\n",
	})
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		name  string
		sc    *sc
		image string
		want  spec.User
	}{
		{"image", nil, "1000", spec.User{UID: 1000, Additional: []uint32{0}, Home: "/"}},
		{"image with group", nil, "1000:2000", spec.User{UID: 1000, GID: 2000, Additional: []uint32{2000}, NumberIsName: true, Home: "/"}},
		{"image with a plus sign", nil, "+1000:+2000", spec.User{UID: 1000, GID: 2000, Additional: []uint32{2000}, NumberIsName: true, Home: "/"}},
		{"image with zeros in front", nil, "01000:02000", spec.User{UID: 1000, GID: 2000, Additional: []uint32{2000}, NumberIsName: true, Home: "/"}},
		{"name and numeric group", nil, "root:2000", spec.User{GID: 2000, Additional: []uint32{2000}, NumberIsName: true, Username: "root", Home: "/root"}},
		{"run_as_user", &sc{RunAsUser: number(1000)}, "", spec.User{UID: 1000, Additional: []uint32{0}, Home: "/"}},
		{
			"run_as_user and run_as_group", &sc{RunAsUser: number(1234), RunAsGroup: number(2000)}, "",
			spec.User{UID: 1234, GID: 2000, Additional: []uint32{2000}, NumberIsName: true, Home: "/"},
		},
		{
			"number whose entry has a numeric name", &sc{RunAsUser: number(78)}, "",
			spec.User{UID: 78, GID: 79, Additional: []uint32{79, 50}, Home: "/home/77"},
		},
	} {
		got, err := ResolveUser(t.Context(), root, c.sc, c.image)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	// An OCI runtime might interpret the number as the name.
	supplementary := &sc{RunAsUser: number(1000), RunAsGroup: number(5), SupplementalGroups: []int64{2000}}
	if got, err := ResolveUser(t.Context(), root, supplementary, ""); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "2000") {
		t.Errorf("supplementary group: %+v, %v, want invalid argument", got, err)
	}
	for _, name := range []string{"1000", "77"} {
		if got, err := ResolveUser(t.Context(), root, &sc{RunAsUsername: name}, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("run_as_username %q, which is the ID of no user: %+v, %v, want invalid argument", name, got, err)
		}
	}
}

// TestUserFilesAsReference compares the look-up in random hostile files with a simple reference.
// SEED repeats a run.
func TestUserFilesAsReference(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	g := hostileFiles{rand.New(rand.NewPCG(seed, 0))}
	root := rootfs(t, map[string]string{"etc/passwd": "", "etc/group": ""})
	for i := range 800 {
		passwd, group := g.passwd(), g.group()
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sc, image := g.request()
		got, err := ResolveUser(t.Context(), root, sc, image)
		want, ok := reference{passwd: passwd, group: group}.resolve(sc, image)
		if ok != (err == nil) || ok && !cmp.Equal(want, got) {
			t.Fatalf("SEED=%d, run %d: USER %q, %v\npasswd %q\ngroup %q\ngot %+v, %v\nwant %+v, %t", seed, i, image, sc, passwd, group, got, err, want, ok)
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("SEED=%d, run %d: %v, want invalid argument", seed, i, err)
		}
	}
}

// hostileFiles makes files and requests that are likely to match each other.
type hostileFiles struct{ *rand.Rand }

func (g hostileFiles) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g hostileFiles) name() string {
	return g.pick("root", "app", "0", "1000", "2000", "+", "+app", "-app", "#app", "", " app", "a b", "+1000", "01000", "-1", "4294967296", "app,root")
}

func (g hostileFiles) id() string {
	return g.pick("0", "1000", "2000", "1000", "5", "", "x", " 1000", "1000 ", "+1000", "01000", "-1", "-0", "1e3", "0x0",
		"2147483648", "4294967294", "4294967295", "4294967296", "4294968296", "18446744073709551616", "99999999999999999999999999")
}

func (g hostileFiles) lines(entry func() string) string {
	var b strings.Builder
	for range g.IntN(7) {
		b.WriteString(g.pick("", "", "", "", " ", "\t") + entry() + g.pick("", "", "", "", " ", "\r") + "\n")
	}
	return strings.TrimSuffix(b.String(), g.pick("\n", "-"))
}

// cut sometimes removes the last fields of an entry.
func (g hostileFiles) cut(entry string) string {
	if g.IntN(4) > 0 {
		return entry
	}
	fields := strings.Split(entry, ":")
	return strings.Join(fields[:g.IntN(len(fields))], ":")
}

func (g hostileFiles) passwd() string {
	return g.lines(func() string {
		return g.cut(fmt.Sprintf("%s:x:%s:%s:gecos:%s:/bin/sh%s", g.name(), g.id(), g.id(), g.pick("", "/home", "/a b", "/\xff", "/\x00"), g.pick("", "", ":more:0")))
	})
}

func (g hostileFiles) group() string {
	return g.lines(func() string {
		members := make([]string, g.IntN(4))
		for i := range members {
			members[i] = g.name()
		}
		return g.cut(fmt.Sprintf("%s:x:%s:%s%s", g.name(), g.id(), strings.Join(members, ","), g.pick("", "", ":app")))
	})
}

func (g hostileFiles) request() (*runtimeapi.LinuxContainerSecurityContext, string) {
	sc := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy(g.IntN(2))}
	ids := []int64{0, 5, 1000, 2000, -1, 1<<32 - 2, 1<<32 - 1, 1 << 32}
	switch g.IntN(4) {
	case 0:
		sc.RunAsUser = number(ids[g.IntN(len(ids))])
	case 1:
		sc.RunAsUsername = g.name()
	}
	if (sc.RunAsUser != nil || sc.RunAsUsername != "") && g.IntN(2) == 0 {
		sc.RunAsGroup = number(ids[g.IntN(len(ids))])
	}
	for range g.IntN(3) {
		sc.SupplementalGroups = append(sc.SupplementalGroups, ids[g.IntN(len(ids))])
	}
	return sc, g.pick(g.name(), g.id()) + g.pick("", ":", ":"+g.name(), ":"+g.id())
}

// reference looks up users in the simplest way: it splits whole files and recognises IDs by their
// digits.
type reference struct{ passwd, group string }

func (r reference) entries(text string) [][]string {
	var out [][]string
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if first := fields[0]; len(fields) == 1 && first == "" || first != "" && strings.Contains("#+-", first[:1]) {
			continue
		}
		out = append(out, append(fields, "", "", "", "", "", ""))
	}
	return out
}

// id returns the value of the digits of s; ok is false for a name and for an invalid ID.
func (r reference) id(s string) (id uint32, numeric, ok bool) {
	digits := s
	if s != "" && strings.Contains("+-", s[:1]) {
		digits = s[1:]
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, false
	}
	value := 0.0
	for _, d := range digits {
		value = value*10 + float64(d-'0')
	}
	if value > 4294967294 || value > 0 && s[0] == '-' {
		return 0, true, false
	}
	return uint32(value), true, true
}

func (r reference) resolve(sc *runtimeapi.LinuxContainerSecurityContext, image string) (spec.User, bool) {
	name, group, _ := strings.Cut(image, ":")
	if sc.RunAsUser != nil || sc.RunAsUsername != "" {
		name, group = sc.RunAsUsername, ""
	}
	if sc.RunAsUser != nil {
		name = fmt.Sprint(sc.RunAsUser.Value)
	}
	if sc.RunAsGroup != nil {
		group = fmt.Sprint(sc.RunAsGroup.Value)
	}
	if name == "" {
		name = "0"
	}
	u := spec.User{Home: "/"}
	uid, numeric, ok := r.id(name)
	if numeric && !ok {
		return spec.User{}, false
	}
	u.UID = uid
	var entry []string
	for _, e := range r.entries(r.passwd) {
		id, _, valid := r.id(e[2])
		if !numeric && e[0] == name || numeric && valid && id == uid {
			entry = e
			break
		}
	}
	if entry == nil && (!numeric || sc.RunAsUsername != "") {
		return spec.User{}, false
	}
	if entry != nil {
		var okUID, okGID bool
		u.UID, _, okUID = r.id(entry[2])
		if u.GID, _, okGID = r.id(entry[3]); entry[3] == "" {
			okGID = true
		}
		if !okUID || !okGID {
			return spec.User{}, false
		}
		if home := entry[5]; home != "" && !strings.Contains(home, "\x00") {
			u.Home = strings.ToValidUTF8(home, "\uFFFD")
		}
		if !numeric {
			u.Username = name
		}
	}
	return r.groups(u, sc, entry, group)
}

func (r reference) groups(u spec.User, sc *runtimeapi.LinuxContainerSecurityContext, entry []string, group string) (spec.User, bool) {
	if group != "" {
		gid, numeric, ok := r.id(group)
		for _, e := range r.entries(r.group) {
			if !numeric && e[0] == group {
				gid, _, ok = r.id(e[2])
				break
			}
		}
		if !ok {
			return spec.User{}, false
		}
		u.GID = gid
	}
	u.Additional = []uint32{u.GID}
	add := func(id uint32) {
		for _, have := range u.Additional {
			if have == id {
				return
			}
		}
		u.Additional = append(u.Additional, id)
	}
	if entry != nil && entry[0] != "" && sc.SupplementalGroupsPolicy == runtimeapi.SupplementalGroupsPolicy_Merge {
		for _, e := range r.entries(r.group) {
			for _, member := range strings.Split(e[3], ",") {
				if id, _, ok := r.id(e[2]); ok && member == entry[0] {
					add(id)
				}
			}
		}
	}
	for _, id := range sc.SupplementalGroups {
		if id < 0 || id > 1<<32-2 {
			return spec.User{}, false
		}
		add(uint32(id))
	}
	for _, e := range r.entries(r.group) {
		for i, have := range u.Additional {
			if id, _, ok := r.id(e[2]); e[0] == fmt.Sprint(have) && (!ok || id != have) {
				if i > 0 {
					return spec.User{}, false
				}
				u.NumberIsName = true
			}
		}
	}
	return u, true
}

// TestUserFilesThatAreNoFiles holds that only a regular file of limited size is read, for any other
// file type in its place.
func TestUserFilesThatAreNoFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mknod needs root")
	}
	for name, c := range map[string]struct {
		make func(p string) error
		says string // "" if the user is not found
	}{
		"device":        {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }, "not a regular file"},
		"socket":        {func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o666, 0) }, "not a regular file"},
		"link to proc":  {func(p string) error { return os.Symlink("/proc/self/environ", p) }, ""},
		"link to a tty": {func(p string) error { return os.Symlink("/dev/tty", p) }, ""},
		"sparse": {func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("app:x:5:5::/:\n"), 0o644), os.Truncate(p, 10<<30))
		}, "10737418240 bytes, the limit is 8388608"},
	} {
		for _, file := range []string{"passwd", "group"} {
			root := rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
			p := filepath.Join(root, "etc", file)
			if err := errors.Join(os.Remove(p), c.make(p)); err != nil {
				t.Fatal(err)
			}
			_, err := ResolveUser(t.Context(), root, nil, "app:video")
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s for /etc/%s: %v, want invalid argument and %q", name, file, err, c.says)
			}
		}
	}
}

// TestLongLinesOfUserFiles holds that a line may be as long as its file allows: a group may have
// many members.
func TestLongLinesOfUserFiles(t *testing.T) {
	root := rootfs(t, map[string]string{
		"etc/passwd": "long:x:1:1:" + strings.Repeat("g", 1<<20) + ":/:\n" + passwd,
		"etc/group":  "crowd:x:7:" + strings.Repeat("member,", 300_000) + "app\n" + group,
	})
	u, err := ResolveUser(t.Context(), root, nil, "app")
	if err != nil || u.UID != 1000 || !slices.Contains(u.Additional, 7) {
		t.Errorf("%+v, %v", u, err)
	}
}
