package network

import (
	"fmt"
	"strings"
	"testing"
)

// Plugin results differ by version and in completeness. The pod's interface is eth0.
func TestAddressesOfResults(t *testing.T) {
	for name, test := range map[string]struct {
		version, result string
		want            string // addresses, or part of the error
	}{
		"namespace left out":       {"1.0.0", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"namespace named":          {"1.0.0", `"interfaces":[{"name":"eth0","sandbox":"/run/net"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"behind the node's":        {"1.1.0", `"interfaces":[{"name":"br0"},{"name":"veth1"},{"name":"eth0"}],"ips":[{"interface":2,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"of the node's":            {"1.0.0", `"interfaces":[{"name":"br0"},{"name":"eth0"}],"ips":[{"interface":0,"address":"10.1.2.1/24"}]`, "no address"},
		"the node's of that name":  {"1.0.0", `"interfaces":[{"name":"eth0"},{"name":"eth0","sandbox":"/run/net"}],"ips":[{"interface":0,"address":"192.0.2.1/24"},{"interface":1,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"of a second interface":    {"1.0.0", `"interfaces":[{"name":"eth0"},{"name":"net1","sandbox":"/run/net"}],"ips":[{"interface":1,"address":"192.0.2.1/24"},{"interface":0,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"both families":            {"0.4.0", `"interfaces":[{"name":"eth0"}],"ips":[{"version":"4","interface":0,"address":"10.1.2.3/24"},{"version":"6","interface":0,"address":"fd00::3/64"}]`, "10.1.2.3 fd00::3"},
		"no index":                 {"0.3.1", `"interfaces":[{"name":"br0"}],"ips":[{"version":"4","address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"no interfaces":            {"0.3.0", `"ips":[{"version":"4","address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"index without interfaces": {"1.0.0", `"ips":[{"interface":0,"address":"10.1.2.3/24"}]`, "10.1.2.3"},
		"before interfaces":        {"0.2.0", `"ip4":{"ip":"10.1.2.3/24"},"ip6":{"ip":"fd00::3/64"}`, "10.1.2.3 fd00::3"},
		"index too high":           {"1.0.0", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":7,"address":"10.1.2.3/24"}]`, "10.1.2.3: interface index 7"},
		"index past the end":       {"1.0.0", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":1,"address":"10.1.2.3/24"}]`, "interface index 1"},
		"index below zero":         {"1.0.0", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":-1,"address":"10.1.2.3/24"}]`, "interface index -1"},
		"nothing":                  {"1.0.0", `"dns":{}`, "no address"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.script("odd", fmt.Sprintf(`[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":%q,%s}'`, test.version, test.result))
			n.configure("10.conflist", fmt.Sprintf(`{"cniVersion":%q,"name":"odd","plugins":[{"type":"odd"}]}`, test.version))
			pod := newPod(t)
			result, err := n.Add(t.Context(), pod)
			if err != nil {
				if !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
				return
			}
			must(t, n.Del(t.Context(), pod))
			var got []string
			for _, ip := range result.IPs {
				got = append(got, ip.String())
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("addresses %v, want %s", got, test.want)
			}
		})
	}
}
