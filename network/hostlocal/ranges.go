package hostlocal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// rangeConf is a range in the configuration.
type rangeConf struct {
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Subnet     string `json:"subnet"`
	Gateway    string `json:"gateway,omitempty"`
}

// addresses is a range of addresses of one subnet, both ends inclusive. The gateway is never
// assigned.
type addresses struct {
	subnet      netip.Prefix
	first, last netip.Addr
	gateway     netip.Addr
}

// parse validates a range. Without explicit ends, it is the whole subnet, except for the network
// address and an IPv4 subnet's broadcast address. The default gateway is the first address.
func (c rangeConf) parse() (addresses, error) {
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return addresses{}, err
	}
	if subnet.Bits() > subnet.Addr().BitLen()-2 {
		return addresses{}, fmt.Errorf("network %s is too small to allocate from", subnet)
	}
	if subnet != subnet.Masked() {
		return addresses{}, fmt.Errorf("network %s has host bits set: the network address is %s", subnet, subnet.Masked().Addr())
	}
	r := addresses{subnet: subnet}
	for _, field := range []struct {
		name, text string
		to         *netip.Addr
		unset      netip.Addr
	}{
		{"gateway", c.Gateway, &r.gateway, subnet.Addr().Next()},
		{"rangeStart", c.RangeStart, &r.first, subnet.Addr().Next()},
		{"rangeEnd", c.RangeEnd, &r.last, lastOf(subnet)},
	} {
		*field.to = field.unset
		if field.text == "" {
			continue
		}
		ip, err := netip.ParseAddr(field.text)
		if err != nil {
			return addresses{}, fmt.Errorf("%s: %w", field.name, err)
		}
		*field.to = ip.Unmap()
		if !subnet.Contains(*field.to) {
			return addresses{}, fmt.Errorf("%s %s is not in network %s", field.name, ip, subnet)
		}
	}
	if r.last.Less(r.first) {
		return addresses{}, fmt.Errorf("rangeStart %s is after rangeEnd %s", r.first, r.last)
	}
	return r, nil
}

// lastOf returns the last address of a subnet that a pod may have.
func lastOf(subnet netip.Prefix) netip.Addr {
	if subnet.Addr().Is4() {
		b := subnet.Addr().As4()
		host := uint32(1)<<(32-subnet.Bits()) - 1
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
		return netip.AddrFrom4(b).Prev() // without the broadcast address
	}
	b := subnet.Addr().As16()
	for bit := subnet.Bits(); bit < 128; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom16(b)
}

func (r addresses) contains(ip netip.Addr) bool {
	return r.subnet.Contains(ip) && !ip.Less(r.first) && !r.last.Less(ip)
}

func (r addresses) overlaps(other addresses) bool {
	return r.first.BitLen() == other.first.BitLen() && !r.last.Less(other.first) && !other.last.Less(r.first)
}

func (r addresses) String() string { return r.first.String() + "-" + r.last.String() }

// rangeSet is a list of ranges of one address family. A pod gets one address from each set.
type rangeSet []addresses

func parseSet(confs []rangeConf) (rangeSet, error) {
	if len(confs) == 0 {
		return nil, errors.New("empty range set")
	}
	var set rangeSet
	for _, c := range confs {
		r, err := c.parse()
		if err != nil {
			return nil, err
		}
		if len(set) > 0 && set[0].first.BitLen() != r.first.BitLen() {
			return nil, errors.New("mixed address families")
		}
		if (rangeSet{r}).overlaps(set) {
			return nil, fmt.Errorf("range %s overlaps another range", r)
		}
		set = append(set, r)
	}
	return set, nil
}

func (s rangeSet) overlaps(other rangeSet) bool {
	for _, r := range s {
		for _, o := range other {
			if r.overlaps(o) {
				return true
			}
		}
	}
	return false
}

// index returns the index of the range with an address, or -1.
func (s rangeSet) index(ip netip.Addr) int {
	for i, r := range s {
		if r.contains(ip) {
			return i
		}
	}
	return -1
}

func (s rangeSet) String() string {
	names := make([]string, len(s))
	for i, r := range s {
		names[i] = r.String()
	}
	return strings.Join(names, ",")
}

// candidates yields every address that can be assigned, once, beginning behind the one that was
// leased last.
func (s rangeSet) candidates(last netip.Addr) iter.Seq2[netip.Addr, addresses] {
	return func(yield func(netip.Addr, addresses) bool) {
		at, ip := 0, s[0].first
		if i := s.index(last); i >= 0 {
			at, ip = s.after(i, last)
		}
		for start := ip; ; {
			if ip != s[at].gateway && !yield(ip, s[at]) {
				return
			}
			if at, ip = s.after(at, ip); ip == start {
				return
			}
		}
	}
}

// after returns the address behind ip, and its range. The last range is followed by the first.
func (s rangeSet) after(at int, ip netip.Addr) (int, netip.Addr) {
	if ip != s[at].last {
		return at, ip.Next()
	}
	at = (at + 1) % len(s)
	return at, s[at].first
}
