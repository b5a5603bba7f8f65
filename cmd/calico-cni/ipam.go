package main

import (
	"context"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ipamFuncs is the IPAM plugin for networks that another plugin makes. Our own
// plugin does the same in its process.
func ipamFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: func(c *skel.CmdArgs) error { return asCNI(ipamAdd(c)) },
		Del: func(c *skel.CmdArgs) error { return asCNI(ipamDel(c)) },
		Check: func(c *skel.CmdArgs) error {
			return asCNI(ipamCheck(c))
		},
		GC:     func(c *skel.CmdArgs) error { return asCNI(ipamCollect(c)) },
		Status: func(c *skel.CmdArgs) error { return asCNI(ipamStatus(c)) },
	}
}

// asIPAM makes the session hand out addresses itself, whatever name it was
// called by.
func asIPAM(ctx context.Context, cmd *skel.CmdArgs) (*session, *attachment, error) {
	s, a, err := begin(ctx, cmd)
	if err == nil {
		s.conf.IPAM.Type = "calico-ipam"
		a.elsewhere = a.conf.Type != "calico"
	}
	return s, a, err
}

func ipamAdd(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, a, err := asIPAM(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.ready(ctx); err != nil {
		return err
	}
	addrs, err := s.assign(ctx, a, cmd.StdinData)
	if err != nil {
		return err
	}
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	for _, addr := range addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{Address: *single(addr)})
	}
	return types.PrintResult(r, s.conf.CNIVersion)
}

func ipamDel(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, a, err := asIPAM(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.ready(ctx); err != nil {
		return err
	}
	return s.release(ctx, a, cmd.StdinData)
}

func ipamCheck(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, a, err := asIPAM(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	prev, err := previous(s.conf)
	if err != nil {
		return err
	}
	d := &drift{}
	if err := d.checkAddresses(ctx, s, a, addressesOf(prev, a)); err != nil {
		return err
	}
	return d.err()
}

func ipamCollect(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, _, err := asIPAM(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	return s.collectAddresses(ctx, staleIn(s.conf))
}

func ipamStatus(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), statusTime)
	defer cancel()
	s, _, err := asIPAM(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	return s.reachable(ctx)
}
