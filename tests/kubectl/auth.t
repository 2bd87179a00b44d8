# Who may: can-i, whoami, reconcile, impersonation, tokens, certificates.

$ kubectl auth whoami -o jsonpath='{.status.userInfo.username} {.status.userInfo.groups}'
[..] ["system:masters","system:authenticated"]
$ kubectl auth can-i '*' '*'
yes
$ kubectl create serviceaccount sa
serviceaccount/sa created
$ kubectl auth can-i list pods --as=system:serviceaccount:$NS:sa
? 1
no
$ kubectl get pods --as=system:serviceaccount:$NS:sa
? 1
Error from server (Forbidden): pods is forbidden: User "system:serviceaccount:[..]:sa" cannot list resource "pods" in API group "" in the namespace "[..]"
$ kubectl create role reader --verb=get,list,watch --resource=pods,pods/log
role.rbac.authorization.k8s.io/reader created
$ kubectl create rolebinding reader --role=reader --serviceaccount=$NS:sa
rolebinding.rbac.authorization.k8s.io/reader created
$~ kubectl auth can-i list pods --as=system:serviceaccount:$NS:sa
yes
$ kubectl auth can-i get pods --subresource=log --as=system:serviceaccount:$NS:sa
yes
$ kubectl auth can-i get /metrics --as=system:serviceaccount:$NS:sa
? 1
no
$ kubectl auth can-i --list --as=system:serviceaccount:$NS:sa
Resources[..]Non-Resource URLs[..]Resource Names   Verbs
...
pods/log [..][get list watch]
...
$ kubectl auth whoami --as=system:serviceaccount:$NS:sa -o jsonpath='{.status.userInfo.groups}'
["system:serviceaccounts","system:serviceaccounts:[..]","system:authenticated"]
$ TOKEN=$(kubectl create token sa); kubectl --kubeconfig=/dev/null --server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --token=$TOKEN auth whoami -o jsonpath='{.status.userInfo.username}'
system:serviceaccount:[..]:sa
$ TOKEN=$(kubectl create token sa); kubectl --kubeconfig=/dev/null --server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --token=$TOKEN get secrets -n $NS
? 1
Error from server (Forbidden): secrets is forbidden: User "system:serviceaccount:[..]:sa" cannot list resource "secrets" in API group "" in the namespace "[..]"
$ kubectl --kubeconfig=/dev/null --server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --token=wrong get pods
? 1
error: You must be logged in to the server (Unauthorized)
$ kubectl create role more --verb='*' --resource=secrets --as=system:serviceaccount:$NS:sa
? 1
Error from server (Forbidden): roles.rbac.authorization.k8s.io is forbidden: User "system:serviceaccount:[..]:sa" cannot create resource "roles" in API group "rbac.authorization.k8s.io" in the namespace "[..]"
$ kubectl create rolebinding editor --clusterrole=admin --user=$NS-admin
rolebinding.rbac.authorization.k8s.io/editor created
$~ kubectl auth can-i create roles --as=$NS-admin
yes
$ kubectl create role more --verb=get --resource=nodes --as=$NS-admin
? 1
Error from server (Forbidden): roles.rbac.authorization.k8s.io "more" is forbidden: user "[..]-admin" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}
$ cat > rbac.yaml <<E
> apiVersion: rbac.authorization.k8s.io/v1
> kind: Role
> metadata: {name: reader, namespace: $NS}
> rules: [{apiGroups: [""], resources: [configmaps], verbs: [get]}]
> E
$ kubectl auth reconcile -f rbac.yaml
role.rbac.authorization.k8s.io/reader reconciled
	reconciliation required update
	missing rules added:
		{Verbs:[get] APIGroups:[] Resources:[configmaps] ResourceNames:[] NonResourceURLs:[]}
$ kubectl get role reader -o jsonpath='{.rules[*].resources}'
["pods","pods/log"] ["configmaps"]

# Certificates: a request, its denial, another one and its approval.

$ openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out csr.pem -subj /CN=jane/O=devs 2>/dev/null; for n in one two; do printf "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: $NS-$n}\nspec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: $(base64 -w0 csr.pem)}\n" | kubectl create -f -; done
certificatesigningrequest.certificates.k8s.io/[..]-one created
certificatesigningrequest.certificates.k8s.io/[..]-two created
$ kubectl get csr $NS-one
NAME[..]AGE   SIGNERNAME[..]REQUESTOR[..]REQUESTEDDURATION   CONDITION
[..]-one   [..]   kubernetes.io/kube-apiserver-client   [..]   <none>              Pending
$ kubectl certificate deny $NS-one
certificatesigningrequest.certificates.k8s.io/[..]-one denied
$ kubectl get csr $NS-one --no-headers
[..]Denied
$ kubectl certificate approve $NS-two
certificatesigningrequest.certificates.k8s.io/[..]-two approved
$~ kubectl get csr $NS-two --no-headers
[..]Approved,Issued
$ kubectl get csr $NS-two -o jsonpath='{.status.certificate}' | base64 -d > cert.pem; openssl x509 -in cert.pem -noout -subject | tr -d ' '
subject=[..]CN=jane[..]
$ kubectl --server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --kubeconfig=/dev/null --client-certificate=cert.pem --client-key=key.pem auth whoami -o jsonpath='{.status.userInfo.username} {.status.userInfo.groups}'
jane ["devs","system:authenticated"]
$ kubectl delete csr $NS-one $NS-two -o name
certificatesigningrequest.certificates.k8s.io/[..]-one
certificatesigningrequest.certificates.k8s.io/[..]-two
