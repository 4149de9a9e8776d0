package lookup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testcost"
)

// groupsOfApp is an /etc/group that lists the user app n times.
func groupsOfApp(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "g%d:x:%d:app\n", i, i+1)
	}
	return b.String()
}

// TestUserInManyGroups holds that an image whose /etc/group lists the user many times costs in
// proportion to the file, and is refused above the kernel's limit.
func TestUserInManyGroups(t *testing.T) {
	in := func(group string) string {
		return rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	}
	most := in(groupsOfApp(maxGroups - 1))
	u, err := ResolveUser(t.Context(), most, nil, "app:0")
	if err != nil || len(u.Additional) != maxGroups {
		t.Fatalf("%d groups, %v", len(u.Additional), err)
	}
	more := in(groupsOfApp(100_000))
	strict := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}
	if u, err := ResolveUser(t.Context(), more, strict, "app"); err != nil || len(u.Additional) != 1 {
		t.Errorf("strictly: %d groups, %v", len(u.Additional), err)
	}
	_, err = ResolveUser(t.Context(), more, nil, "app")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more than 65536 groups in /etc/group of the image") {
		t.Errorf("100,000 groups: %v", err)
	}
	one := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{1 << 20}}
	if _, err := ResolveUser(t.Context(), most, one, "app:0"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "supplemental") {
		t.Errorf("one group more by the request: %v", err)
	}
	roots := map[int]string{}
	const n = 60_000
	for _, n := range []int{n, n / 16} {
		roots[n] = in(groupsOfApp(n))
	}
	testcost.Linear(t, "groups", n, func(n int) {
		if _, err := ResolveUser(t.Context(), roots[n], nil, "app"); err != nil {
			t.Error(err)
		}
	})
	requested := func(n int) []int64 {
		ids := make([]int64, n)
		for i := range ids {
			ids[i] = int64(i)
		}
		return ids
	}
	testcost.Linear(t, "supplemental groups", n, func(n int) {
		if _, err := ResolveUser(t.Context(), roots[n], &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: requested(n)}, "app"); err != nil {
			t.Error(err)
		}
	})
}

// TestUserLookUpEndsWithItsContext holds that reading an image's files stops when the call's
// context ends.
func TestUserLookUpEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := eachEntry(ctx, []byte(groupsOfApp(50_000)), 5, func([]string) bool {
		if n++; n == 10 {
			cancel()
		}
		return true
	})
	if !errors.Is(err, context.Canceled) || n > 10+linesPerCheck {
		t.Errorf("read %d lines after the context had ended at the tenth: %v", n, err)
	}
	root := rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	if u, err := ResolveUser(ctx, root, nil, "app"); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v, want the context's error", u, err)
	}
}

// TestManyDevices holds that the cost of many devices is proportional to their number.
func TestManyDevices(t *testing.T) {
	devices := func(n int) []*runtimeapi.Device {
		out := make([]*runtimeapi.Device, n)
		for i := range out {
			out[i] = &runtimeapi.Device{HostPath: "/dev/null", ContainerPath: fmt.Sprintf("/dev/n%d", i)}
		}
		return out
	}
	testcost.Linear(t, "devices", 8_000, func(n int) {
		if nodes, _, err := ResolveDevices(devices(n)); err != nil || len(nodes) != n {
			t.Errorf("%d devices, %v", len(nodes), err)
		}
	})
}
