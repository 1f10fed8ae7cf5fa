// Until it is published under a name of its own, use a checkout: replace sessiond.example/guard => ../sessiond/clients/go
module sessiond.example/guard

go 1.19
