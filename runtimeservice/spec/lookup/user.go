package lookup

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/userid"
	"github.com/micarun/mica/runtimeservice/spec"
)

// maxGroups is NGROUPS_MAX of setgroups(2), the maximum number of groups of a process.
const maxGroups = 65536

// ResolveUser returns a container's user. It takes it from the security context or, without one
// there, from image (the image's USER, "name[:group]" or numbers), and resolves it in the root file
// system at rootfs. A number is always an ID, never a name. The first entry of /etc/passwd with
// that ID adds group, home directory and further groups.
//
// Additional starts with the primary group. With policy Merge, the user's groups in the image's
// /etc/group follow, then the requested ones. The image's files are opened without leaving rootfs
// and without blocking on a FIFO, and their size is limited.
//
// It returns ErrInvalidArgument for users and groups that do not exist, user files that are not
// regular files of limited size, more than 65,536 groups, and supplementary groups whose number is
// the name of another group.
func ResolveUser(ctx context.Context, rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, image string) (spec.User, error) {
	u, err := resolveUser(ctx, rootfs, sc, image)
	if err != nil {
		return spec.User{}, fmt.Errorf("resolve user: %w", err)
	}
	return u, nil
}

func resolveUser(ctx context.Context, rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, image string) (spec.User, error) {
	name, group, err := requestedUser(sc, image)
	if err != nil {
		return spec.User{}, err
	}
	users, err := readInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return spec.User{}, err
	}
	groups, err := readInRoot(rootfs, "/etc/group")
	if err != nil {
		return spec.User{}, err
	}
	u, entry, err := findUser(ctx, users, name)
	if err != nil {
		return spec.User{}, err
	}
	if sc.GetRunAsUsername() != "" && entry == nil {
		return spec.User{}, invalid("user %q is not in /etc/passwd of the image", name)
	}
	if group != "" {
		if u.GID, err = findGroup(ctx, groups, group); err != nil {
			return spec.User{}, err
		}
	}
	set := newGroupSet(u.GID)
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && entry != nil {
		if err := set.addMemberships(ctx, groups, entry.name); err != nil {
			return spec.User{}, err
		}
	}
	if err := set.addRequested(sc.GetSupplementalGroups()); err != nil {
		return spec.User{}, err
	}
	u.Additional = set.ids
	if u.NumberIsName, err = set.misnamed(ctx, groups); err != nil {
		return spec.User{}, err
	}
	return u, nil
}

// requestedUser returns the requested user and group, as names or numbers.
func requestedUser(sc *runtimeapi.LinuxContainerSecurityContext, image string) (name, group string, err error) {
	uid, gid := sc.GetRunAsUser(), sc.GetRunAsGroup()
	if uid != nil && sc.GetRunAsUsername() != "" {
		return "", "", invalid("run_as_user and run_as_username exclude each other")
	}
	if gid != nil {
		if uid == nil && sc.GetRunAsUsername() == "" {
			return "", "", invalid("run_as_group without run_as_user or run_as_username")
		}
		group = strconv.FormatInt(gid.GetValue(), 10)
	}
	switch {
	case uid != nil:
		return strconv.FormatInt(uid.GetValue(), 10), group, nil
	case sc.GetRunAsUsername() != "":
		return sc.GetRunAsUsername(), group, nil
	}
	name, group, _ = strings.Cut(image, ":")
	if name == "" {
		name = "0"
	}
	return name, group, nil
}

// findUser looks up a name or number. entry is nil for a number that is not in /etc/passwd.
func findUser(ctx context.Context, passwd []byte, name string) (u spec.User, entry *userEntry, err error) {
	id, numeric, err := userid.Parse(name)
	if err != nil {
		return spec.User{}, nil, invalid("user: %v", err)
	}
	matches := func(e userEntry) bool { return e.name == name }
	if numeric {
		matches = func(e userEntry) bool { return e.hasID(id) }
	}
	if entry, err = firstUser(ctx, passwd, matches); err != nil {
		return spec.User{}, nil, err
	}
	switch {
	case entry != nil:
		u, err = entry.user()
	case numeric:
		u = spec.User{UID: id, Home: "/"}
	default:
		err = invalid("user %q is not in /etc/passwd of the image", name)
	}
	if err == nil && !numeric {
		u.Username = name
	}
	return u, entry, err
}

// findGroup returns the ID of a group. It looks up only names; a number is the ID itself.
func findGroup(ctx context.Context, text []byte, name string) (uint32, error) {
	id, numeric, err := userid.Parse(name)
	if err != nil {
		return 0, invalid("group: %v", err)
	}
	if numeric {
		return id, nil
	}
	field, found := "", false
	err = eachGroup(ctx, text, func(e groupEntry) bool {
		if found = e.name == name; found {
			field = e.gid
		}
		return !found
	})
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, invalid("group %q is not in /etc/group of the image", name)
	}
	if id, numeric, err = userid.Parse(field); err != nil || !numeric {
		return 0, invalid("group %q has ID %q in /etc/group of the image", name, field)
	}
	return id, nil
}

// groupSet is an ordered set of group IDs.
type groupSet struct {
	ids  []uint32
	have map[uint32]struct{}
}

func newGroupSet(primary uint32) *groupSet {
	return &groupSet{ids: []uint32{primary}, have: map[uint32]struct{}{primary: {}}}
}

// add adds an ID and returns false if the set is full.
func (s *groupSet) add(id uint32) bool {
	if _, ok := s.have[id]; ok {
		return true
	}
	if len(s.ids) >= maxGroups {
		return false
	}
	s.have[id] = struct{}{}
	s.ids = append(s.ids, id)
	return true
}

// addMemberships adds the groups whose entry in /etc/group lists the user. It ignores entries
// without a valid ID.
func (s *groupSet) addMemberships(ctx context.Context, text []byte, user string) error {
	if user == "" {
		return nil
	}
	room := true
	err := eachGroup(ctx, text, func(e groupEntry) bool {
		if !e.lists(user) {
			return true
		}
		if id, numeric, err := userid.Parse(e.gid); numeric && err == nil {
			room = s.add(id)
		}
		return room
	})
	if err != nil {
		return err
	}
	if !room {
		return invalid("user %q is in more than %d groups in /etc/group of the image", user, maxGroups)
	}
	return nil
}

func (s *groupSet) addRequested(groups []int64) error {
	for _, id := range groups {
		if id < 0 || id > userid.Max {
			return invalid("supplemental group %d", id)
		}
		if !s.add(uint32(id)) {
			return invalid("%d supplemental groups and those of the user are more than %d groups", len(groups), maxGroups)
		}
	}
	return nil
}

// misnamed searches the image's groups for one whose name is the number of a group in the set but
// whose ID differs. runc before 1.3 interprets a supplementary group's number as such a name.
// primary is true if the primary group is affected; it can be left out of the supplementary groups.
// For any other group misnamed returns ErrInvalidArgument.
func (s *groupSet) misnamed(ctx context.Context, text []byte) (primary bool, err error) {
	var refused error
	err = eachGroup(ctx, text, func(e groupEntry) bool {
		id, numeric, err := userid.Parse(e.name)
		if _, have := s.have[id]; err != nil || !numeric || !have || e.name != strconv.FormatUint(uint64(id), 10) {
			return true
		}
		if is, numeric, err := userid.Parse(e.gid); numeric && err == nil && is == id {
			return true
		}
		if id != s.ids[0] {
			refused = invalid("supplementary group %d is the name of a group with ID %q in /etc/group of the image", id, e.gid)
		}
		primary = primary || id == s.ids[0]
		return refused == nil
	})
	if err == nil {
		err = refused
	}
	return primary, err
}
