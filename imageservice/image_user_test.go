package imageservice

import "testing"

// TestUserOfImage holds that the kubelet is given the ID that containers of the
// image get, or a name, of which it knows no ID.
func TestUserOfImage(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  int64 // -1: none
		name string
	}{
		{"", -1, ""},
		{":5", -1, ""},
		{"0", 0, ""},
		{"-0", 0, ""},
		{"000", 0, ""},
		{"1000", 1000, ""},
		{"+1000", 1000, ""},
		{"1000:2000", 1000, ""},
		{"1000:root", 1000, ""},
		{"4294967294", 4294967294, ""},
		{"4294967295", -1, "4294967295"},
		{"4294967296", -1, "4294967296"},
		{"-1", -1, "-1"},
		{"99999999999999999999", -1, "99999999999999999999"},
		{"app", -1, "app"},
		{"app:1000", -1, "app"},
		{" 1000", -1, " 1000"},
		{"0x0", -1, "0x0"},
	} {
		img := Image{User: c.user}
		uid, name := img.UserOrUID()
		if name != c.name || (uid == nil) != (c.uid < 0) || uid != nil && *uid != c.uid {
			t.Errorf("USER %q is uid %v and name %q", c.user, uid, name)
		}
	}
}
