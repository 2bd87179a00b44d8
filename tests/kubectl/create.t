# Every generator of `kubectl create`, and `run` and `expose` without containers.

$ kubectl create configmap c --from-literal=a=1 --from-literal=b=2
configmap/c created
$ printf 'x=1\ny=2\n' > env; printf text > file; kubectl create configmap d --from-env-file=env --dry-run=client -o jsonpath='{.data}'; kubectl create configmap e --from-file=file --from-file=named=file
{"x":"1","y":"2"}configmap/e created
$ kubectl get cm e -o jsonpath='{.data}'
{"file":"text","named":"text"}
$ kubectl create configmap c
? 1
error: failed to create configmap: configmaps "c" already exists
$ kubectl create configmap c --dry-run=server
? 1
error: failed to create configmap: configmaps "c" already exists
$ kubectl create configmap Bad_Name
? 1
error: failed to create configmap: ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[..]')
$ kubectl create configmap g --from-literal=a=1 --dry-run=server
configmap/g created (server dry run)
$ kubectl get cm g --ignore-not-found
$ kubectl create secret generic s --from-literal=password=crab
secret/s created
$ kubectl get secret s -o jsonpath='{.type} {.data.password}'
Opaque Y3JhYg==
$ kubectl create secret docker-registry reg --docker-server=r.example --docker-username=u --docker-password=p
secret/reg created
$ kubectl get secret reg
NAME   TYPE                             DATA   AGE
reg    kubernetes.io/dockerconfigjson   1      [..]
$ openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k -out c -subj /CN=x >/dev/null 2>&1; kubectl create secret tls t --cert=c --key=k
secret/t created
$ kubectl create namespace $NS-2
namespace/[..]-2 created
$ kubectl delete namespace $NS-2
namespace "[..]-2" deleted
$ kubectl create serviceaccount sa
serviceaccount/sa created
$ kubectl create token sa --duration=10m | tr -cd . | wc -c
2
$ kubectl create token none
? 1
error: failed to create token: serviceaccounts "none" not found
$ kubectl create role r --verb=get,list --resource=pods,deployments.apps
role.rbac.authorization.k8s.io/r created
$ kubectl create rolebinding rb --role=r --serviceaccount=$NS:sa
rolebinding.rbac.authorization.k8s.io/rb created
$ kubectl get rolebindings -o wide
NAME   ROLE     AGE   USERS   GROUPS   SERVICEACCOUNTS
rb     Role/r   [..]                     [..]/sa
$ kubectl create clusterrole $NS-cr --verb=get --non-resource-url=/metrics
clusterrole.rbac.authorization.k8s.io/[..]-cr created
$ kubectl create clusterrolebinding $NS-crb --clusterrole=$NS-cr --user=u --group=g
clusterrolebinding.rbac.authorization.k8s.io/[..]-crb created
$ kubectl delete clusterrole/$NS-cr clusterrolebinding/$NS-crb -o name
clusterrole.rbac.authorization.k8s.io/[..]-cr
clusterrolebinding.rbac.authorization.k8s.io/[..]-crb
$ kubectl create deployment web --image=nginx:1 --replicas=0 --port=80
deployment.apps/web created
$ kubectl get deployment web
NAME   READY   UP-TO-DATE   AVAILABLE   AGE
web    0/0     0            0           [..]
$ kubectl create service clusterip svc --tcp=80:8080
service/svc created
$ kubectl create service nodeport np --tcp=80
service/np created
$ kubectl create service loadbalancer lb --tcp=80
service/lb created
$ kubectl create service externalname en --external-name=example.com
service/en created
$ kubectl get services
NAME   TYPE           CLUSTER-IP[..]EXTERNAL-IP[..]PORT(S)        AGE
en     ExternalName   <none>[..]example.com[..]<none>         [..]
lb     LoadBalancer   [..]80:[..]/TCP   [..]
np     NodePort       [..]<none>[..]80:[..]/TCP   [..]
svc    ClusterIP      [..]<none>[..]80/TCP         [..]
$ kubectl expose deployment web --port=8080 --target-port=80 --name=exposed
service/exposed exposed
$ kubectl get service exposed -o jsonpath='{.spec.selector} {.spec.ports[0].port} {.spec.ports[0].targetPort}'
{"app":"web"} 8080 80
$ kubectl create job j --image=busybox:1 -- true
job.batch/j created
$ kubectl create cronjob cj --image=busybox:1 --schedule='0 0 1 1 *' -- true
cronjob.batch/cj created
$ kubectl get cronjob cj
NAME   SCHEDULE    TIMEZONE   SUSPEND   ACTIVE   LAST SCHEDULE   AGE
cj     0 0 1 1 *   <none>     False     0        <none>          [..]
$ kubectl create job from-cj --from=cronjob/cj
job.batch/from-cj created
$ kubectl create ingress ing --rule='example.com/*=svc:80'
ingress.networking.k8s.io/ing created
$ kubectl get ingress ing
NAME   CLASS    HOSTS         ADDRESS   PORTS   AGE
ing    <none>   example.com             80      [..]
$ kubectl create poddisruptionbudget pdb --selector=app=web --min-available=1
poddisruptionbudget.policy/pdb created
$ kubectl create priorityclass $NS-pc --value=10 --description=x
priorityclass.scheduling.k8s.io/[..]-pc created
$ kubectl delete priorityclass $NS-pc
priorityclass.scheduling.k8s.io "[..]-pc" deleted
$ kubectl create quota q --hard=configmaps=10
resourcequota/q created
$ kubectl create -f - <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {generateName: gen-}}
> E
configmap/gen-[..] created
$ kubectl create -f - <<E
> {apiVersion: v1, kind: Wrong, metadata: {name: x}}
> E
? 1
error: resource mapping not found for name: "x" namespace: "" from "STDIN": no matches for kind "Wrong" in version "v1"
ensure CRDs are installed first
$ kubectl create -f - <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dta: {}}
> E
? 1
Error from server (BadRequest): error when creating "STDIN": ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dta"
$ kubectl create -f - --validate=warn <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dta: {}}
> E
Warning: unknown field "dta"
configmap/x created
$ kubectl run p --image=busybox:1 --dry-run=server -o jsonpath='{.spec.containers[0].image} {.spec.containers[0].imagePullPolicy} {.spec.serviceAccountName}'
busybox:1 IfNotPresent default
$ kubectl run p --image=busybox:1 --dry-run=client -o yaml -l a=b --env=X=1 --restart=Never -- sleep 1 | head -8
apiVersion: v1
kind: Pod
metadata:
  labels:
    a: b
  name: p
spec:
  containers:
