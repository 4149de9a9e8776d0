package imagestore

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// The kubelet gets the UID that containers of the image get, or a name without a known UID.
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

// Chain IDs of a published image (nginx), and of its base with one layer.
func TestChainIDs(t *testing.T) {
	for _, c := range []struct{ diffIDs, want []string }{
		{
			[]string{
				"1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3", "cff9e7c67fbb49f4a3d39a66187b50cb525ac501d92b8a921b6877270b6f4ae5",
				"c29414fee8ae39b813dd7a744a2acf3e6d755fc70b2ea2bff9b707171a9fd41b", "05afaee498cfc72f71eb89da7586190efa6370883fbb51f1f8e1aab1942aa7a0",
				"2649de4780441086779fb6d6f7645e257f90fb1729b0a36898b8b5faba0f7d86", "215876b36153585516505977b46790e7f44f693f7473c1efaf8b2c7dac4f241a",
				"f3cecf76da4f34560262476c610533206d0f8e3344f896cc2fb0e59efcc0516a",
			},
			[]string{
				"1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3", "c48247a077eb9c2db74e784dce13198fac9ea62484b6073f1a553ab43feeb39b",
				"7de008c056b4fc3bdd6011aaaf2c82c0f5e96faa9b5a038e9329662b4444dd5b", "4ef9cda1abb71e48d04cc35b0aeec61e7409e2dcb71326373e07623dc8a9f07f",
				"32aca3b86eb2d4e257a2a132c0cbb9958aeba1cd85d25ee6a393fd08f6c2288f", "bac9c7cf98543a3f0091df2dbca2cdf87a1cb80d6d4c623d6c059b658562937e",
				"0a7841a283ece9e7e95603090fa7059e7850e1014b9c893d78a876ce1236efc8",
			},
		},
		{
			[]string{"174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02", "b6f04317756746d77962b67142f7b62957507d85b7d1f9b23867c556ea868534"},
			[]string{"174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02", "d35fb962224413183c3afa175d8f75a00837899accec39fd0ca800d054a8afac"},
		},
	} {
		var diffIDs []digest.Digest
		for _, d := range c.diffIDs {
			diffIDs = append(diffIDs, digest.NewDigestFromEncoded(digest.SHA256, d))
		}
		for i, got := range ChainIDs(diffIDs) {
			if got.Encoded() != c.want[i] {
				t.Errorf("chain ID %d is %s, want %s", i, got.Encoded(), c.want[i])
			}
			if diffIDs[i].Encoded() != c.diffIDs[i] {
				t.Errorf("diff ID %d was changed", i)
			}
		}
	}
}
