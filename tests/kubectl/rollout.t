# scale, autoscale, all of rollout, wait, and the events of it.

$ kubectl create deployment web --image=nginx:1 --replicas=2
deployment.apps/web created
$ kubectl patch deployment web -p '{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1}}}}'
deployment.apps/web patched
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl wait --for=condition=Available deployment/web --timeout=60s
deployment.apps/web condition met
$ kubectl wait --for=jsonpath='{.status.readyReplicas}'=2 deployment/web --timeout=60s
deployment.apps/web condition met
$ kubectl get deployment web
NAME   READY   UP-TO-DATE   AVAILABLE   AGE
web    2/2     2            2           [..]
$ kubectl get deployment web -o wide
NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES    SELECTOR
web    2/2     2            2           [..]    nginx        nginx:1   app=web
$ kubectl get pods -l app=web
NAME[..]READY   STATUS    RESTARTS   AGE
web-[..]   1/1     Running   0          [..]
web-[..]   1/1     Running   0          [..]
$ kubectl scale deployment/web --replicas=3
deployment.apps/web scaled
$ kubectl scale deployment/web --current-replicas=7 --replicas=1
? 1
error: Expected replicas to be 7, was 3
$ kubectl scale deployment/web --replicas=-1
? 1
error: The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0
$ kubectl scale deployment/none --replicas=1
? 1
Error from server (NotFound): deployments.apps "none" not found
$~ kubectl get deployment web --no-headers
web   3/3   [..]
$ kubectl autoscale deployment/web --min=1 --max=5 --cpu=80%
horizontalpodautoscaler.autoscaling/web autoscaled
$ kubectl get hpa web -o jsonpath='{.spec.scaleTargetRef.name} {.spec.minReplicas} {.spec.maxReplicas} {.spec.metrics[0].resource.target.averageUtilization}'
web 1 5 80
$ kubectl delete hpa web -o name
horizontalpodautoscaler.autoscaling/web
$ kubectl annotate deployment/web kubernetes.io/change-cause='version two'
deployment.apps/web annotated
$ kubectl set image deployment/web nginx=nginx:2
deployment.apps/web image updated
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl rollout history deployment/web
deployment.apps/web 
REVISION  CHANGE-CAUSE
1         <none>
2         version two
3         version two

$ kubectl rollout history deployment/web --revision=3
deployment.apps/web with revision #3
Pod Template:
  Labels:	app=web
	pod-template-hash=[..]
  Annotations:	kubernetes.io/change-cause: version two
  Containers:
   nginx:
    Image:	nginx:2
    Port:	<none>
    Host Port:	<none>
    Environment:	<none>
    Mounts:	<none>
  Volumes:	<none>
  Node-Selectors:	<none>
  Tolerations:	<none>

$ kubectl rollout history deployment/web --revision=9
? 1
error: unable to find the specified revision
$ kubectl rollout undo deployment/web
deployment.apps/web rolled back
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image} {.metadata.annotations.deployment\.kubernetes\.io/revision}'
nginx:1 4
$ kubectl rollout undo deployment/web --to-revision=3
deployment.apps/web rolled back
$ kubectl rollout undo deployment/web --to-revision=77
? 1
error: unable to find specified revision 77 in history
$ kubectl rollout pause deployment/web
deployment.apps/web paused
$ kubectl rollout pause deployment/web
? 1
error: deployments.apps "web" is already paused
$ kubectl rollout restart deployment/web
? 1
error: deployments.apps "web" can't restart paused deployment (run rollout resume first)
$ kubectl set image deployment/web nginx=nginx:1
deployment.apps/web image updated
$ kubectl rollout resume deployment/web
deployment.apps/web resumed
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl rollout restart deployment/web
deployment.apps/web restarted
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl set image deployment/web nginx=nginx:missing
deployment.apps/web image updated
$ kubectl rollout status deployment/web --timeout=2s
? 1
...
error: timed out waiting for the condition
$~ kubectl get pods -l app=web --no-headers | grep -cE 'ErrImagePull|ImagePullBackOff'
1
$ kubectl rollout undo deployment/web
deployment.apps/web rolled back
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl events --for deployment/web | grep -c 'Scaled up replica set web-[0-9a-z]* from 0 to 2'
1
$ kubectl events --types=Warning | head -1
LAST SEEN[..]TYPE      REASON[..]OBJECT[..]MESSAGE
$ kubectl get events --field-selector involvedObject.kind=Deployment,reason=ScalingReplicaSet -o name | head -1
event/web.[..]
$ kubectl describe deployment web | grep -E '^(Name|Replicas|StrategyType|RollingUpdateStrategy|Selector|OldReplicaSets|NewReplicaSet)'
Name:                   web
Namespace:              [..]
Selector:               app=web
Replicas:               3 desired | 3 updated | 3 total | 3 available | 0 unavailable
StrategyType:           RollingUpdate
RollingUpdateStrategy:  25% max unavailable, 25% max surge
OldReplicaSets:  [..]
NewReplicaSet:   web-[..] (3/3 replicas created)
$ kubectl describe deployment web | grep -E '^  (Available|Progressing)' | sort
  Available      True    MinimumReplicasAvailable
  Progressing    True    NewReplicaSetAvailable
$ (kubectl wait --for=delete deployment/web --timeout=60s & sleep 0.5; kubectl delete deployment web >/dev/null; wait)
deployment.apps/web condition met
$ kubectl wait --for=create cm/kube-root-ca.crt --timeout=60s
configmap/kube-root-ca.crt condition met
$ kubectl wait --for=condition=Ready pod/none --timeout=1s
? 1
Error from server (NotFound): pods "none" not found
$ kubectl rollout status deployment/none
? 1
Error from server (NotFound): deployments.apps "none" not found
